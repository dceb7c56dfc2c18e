"""Ids are checked however the model takes them out of an input, and never read another table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.runtime import Runtime
from recreplay.runtime.errors import IdRangeError, ReplayError

Capture = Callable[..., Path]
ROWS = (10, 50, 50)


class Tables(nn.Module):
    """Tables of one width; `take` gives the ids of each."""

    def __init__(self, take: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, 4) for rows in ROWS)
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        ids = self.take(x)
        return torch.cat([t(i.long()) for t, i in zip(self.tables, ids, strict=True)], -1)


def example(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"x": torch.tensor([[0, 49, 3], [9, 1, 49], [4, 0, 0]]).to(dtype)}


TAKES: dict[str, Callable[[Tensor], Any]] = {
    "unbind": lambda x: x.unbind(1),
    "split": lambda x: [part[:, 0] for part in x.split(1, 1)],
    "chunk": lambda x: [part.squeeze(1) for part in x.chunk(3, -1)],
    "transposed": lambda x: list(x.t()),
    "backwards": lambda x: [x.transpose(0, 1)[i - 3] for i in range(3)],
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("how", TAKES)
def test_columns_are_checked(captured: Capture, how: str, dtype: torch.dtype) -> None:
    model = Tables(TAKES[how])
    given = example(dtype)
    with Runtime.load(captured(model, given)) as runtime, torch.inference_mode():
        assert runtime.manifest.unchecked == ()
        want = model(given["x"]).numpy()
        np.testing.assert_array_equal(runtime.run(given)["output"], want)
        given["x"][1, 0] = 25
        with pytest.raises(
            IdRangeError, match=r"^input 'x' column 0, row 1: id 25(\.0)? is out of range; table 't"
        ):
            runtime.run(given)


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.EmbeddingBag(20, 4, mode="sum")

    def forward(self, x: Tensor) -> Tensor:
        return self.bags(x[:, 1:])


def test_several_columns_of_one_lookup_are_checked_each(captured: Capture) -> None:
    given = {"x": torch.tensor([[99, 3, 4], [99, 19, 0]])}
    with Runtime.load(captured(Bag(), given)) as runtime:
        assert [(b.column, b.rows) for b in runtime.manifest.bounds] == [(1, 20), (2, 20)]
        runtime.run(given)
        given["x"][0, 2] = 20
        with pytest.raises(
            IdRangeError, match=r"^input 'x' column 2, row 0: id 20 is out of range"
        ):
            runtime.run(given)


COMPUTED: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "modulo": (lambda x: x % 10, True),
    "clamped": (lambda x: x.clamp(0, 9), True),
    "too many": (lambda x: x % 11, False),
    "shifted": (lambda x: x + 1, False),
}


@pytest.mark.parametrize("how", COMPUTED)
def test_computed_ids_never_read_another_table(captured: Capture, how: str) -> None:
    """Stacked with others where they cannot leave their table, else left to what eager does."""
    change, safe = COMPUTED[how]
    model = Tables(lambda x: [change(x[:, 0]), x[:, 1], x[:, 2]])
    given = {"x": torch.tensor([[0, 49, 3], [8, 1, 49], [4, 0, 0]])}
    path = captured(model, given, rewrites=("stack_lookups",))
    with Runtime.load(path) as runtime, torch.inference_mode():
        operators = [o for s in runtime.manifest.buckets[0].segments for o in s.operators]
        assert sum("embedding" in o for o in operators) == (1 if safe else 2)
        np.testing.assert_array_equal(runtime.run(given)["output"], model(given["x"]).numpy())
        given["x"][1, 0] = 10 + 11 * 3
        if safe:
            np.testing.assert_array_equal(runtime.run(given)["output"], model(given["x"]).numpy())
        else:
            with pytest.raises(ReplayError, match="index out of range"):
                runtime.run(given)


def test_ids_made_of_floats_stay_in_what_the_example_has(captured: Capture) -> None:
    """Requests that capture makes up to prove buckets are valid for the model."""

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.table((x * 100).long()).sum(1)

    x = torch.rand(8, 3, generator=torch.Generator().manual_seed(2))
    with Runtime.load(captured(Quantised(), {"x": x}, buckets=[1, 64])) as runtime:
        assert runtime.run({"x": x})["output"].shape == (8, 4)
