"""Along which loop inductor makes vectors where looked-up rows are reduced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recreplay.capture.compilers.row_loops import vectorise_columns

ONE_BY_ONE = "tmpbuf[x2_inner] = in_ptr"  # a vector that is read value by value


class Run(nn.Module):
    def __init__(self, run: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(9, 32))
        self.run = run

    def forward(self, ids: Tensor) -> Tensor:
        return self.run(self.table, ids)


def attention(table: Tensor, ids: Tensor) -> Tensor:
    rows = table[ids]
    weights = (rows * rows[:, :1]).sum(-1).masked_fill(ids == 0, -1e9).softmax(-1)
    return (weights.unsqueeze(-1) * rows).sum(1)


@pytest.fixture
def loops(
    written: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[nn.Module], str]:
    """Inductor's own loops for a model of 20 ids an item."""
    from torch._inductor.codegen.cpp import TilingSelect

    # Put back when the test ends.
    monkeypatch.setattr(TilingSelect, "_select_tiling_indices", TilingSelect._select_tiling_indices)
    return lambda model: written(model, torch.zeros(8, 20, dtype=torch.int32))[1]


@pytest.mark.parametrize(
    "run",
    [
        lambda table, ids: F.embedding(ids, table).amax(1),
        lambda table, ids: (F.embedding(ids, table) * (ids != 0).unsqueeze(-1)).mean(1),
        lambda table, ids: F.embedding(ids, table).masked_fill((ids < 2).unsqueeze(2), 0).sum(1),
        attention,
    ],
    ids=["max", "masked mean", "filled sum", "attention"],
)
def test_rows_that_are_reduced_are_read_by_their_columns(
    run: Callable[[Tensor, Tensor], Tensor], loops: Callable[[nn.Module], str]
) -> None:
    usual = loops(Run(run))
    vectorise_columns()
    ours = loops(Run(run))
    assert ONE_BY_ONE in usual
    assert ONE_BY_ONE not in ours
    assert "Vectorized<float>::loadu(" in ours


@pytest.mark.parametrize(
    "run",
    [
        lambda table, ids: F.embedding(ids, table).sum(2),  # along the columns themselves
        lambda table, ids: F.embedding(ids, table[:, :1]).amax(1),  # rows of one value
        lambda table, ids: ids.float().softmax(1),
    ],
    ids=["columns", "one column", "no rows"],
)
def test_other_loops_stay(
    run: Callable[[Tensor, Tensor], Tensor], loops: Callable[[nn.Module], str]
) -> None:
    usual = loops(Run(run))
    vectorise_columns()
    assert loops(Run(run)) == usual
