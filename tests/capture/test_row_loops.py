"""Along which loop inductor makes vectors where looked-up rows are reduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


class Stop(Exception):
    pass


def attention(table: Tensor, ids: Tensor) -> Tensor:
    rows = table[ids]
    weights = (rows * rows[:, :1]).sum(-1).masked_fill(ids == 0, -1e9).softmax(-1)
    return (weights.unsqueeze(-1) * rows).sum(1)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], str]:
    """Inductor's own loops for a model of 20 ids an item, caught before they go to a compiler."""
    from torch._inductor.codecache import AotCodeCompiler
    from torch._inductor.codegen.cpp import TilingSelect

    # Put back when the test ends.
    monkeypatch.setattr(TilingSelect, "_select_tiling_indices", TilingSelect._select_tiling_indices)
    found: list[str] = []

    def catch(graph: Any, wrapper_code: str, kernel_code: str, *others: Any, **more: Any) -> Any:
        found.append(kernel_code)
        raise Stop("caught")

    monkeypatch.setattr(AotCodeCompiler, "compile", catch)

    def write(model: nn.Module) -> str:
        exported = torch.export.export(model.eval(), (torch.zeros(8, 20, dtype=torch.int32),))
        with pytest.raises(Exception, match="caught"):
            torch._inductor.aoti_compile_and_package(exported)
        return found[-1]

    return write


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
    run: Callable[[Tensor, Tensor], Tensor], written: Callable[[nn.Module], str]
) -> None:
    usual = written(Run(run))
    vectorise_columns()
    ours = written(Run(run))
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
    run: Callable[[Tensor, Tensor], Tensor], written: Callable[[nn.Module], str]
) -> None:
    usual = written(Run(run))
    vectorise_columns()
    assert written(Run(run)) == usual
