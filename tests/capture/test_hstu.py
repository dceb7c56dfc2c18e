"""HSTU as its authors' code has it: histories between padded rows and lists, by fbgemm's calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recreplay.capture import Jagged, capture
from recreplay.runtime import Runtime
from recreplay.runtime.errors import UnsupportedModelError

pytest.importorskip("fbgemm_gpu", reason="no fbgemm, which belongs to one torch")
fbgemm = torch.ops.fbgemm
LONGEST, DIM = 6, 8


class Unit(nn.Module):
    """One layer: attention by SiLU over each row's items, gated item by item."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Parameter(torch.randn(DIM, 4 * DIM) / DIM)
        self.out = nn.Linear(DIM, DIM)
        self.register_buffer("before", torch.ones(LONGEST, LONGEST).tril())

    def forward(self, items: Tensor, ends: Tensor) -> Tensor:
        both = F.silu(torch.mm(F.layer_norm(items, [DIM]), self.mixed))
        gate, value, query, key = torch.split(both, DIM, dim=1)
        query, key, value = (
            fbgemm.jagged_to_padded_dense(
                values=part, offsets=[ends], max_lengths=[LONGEST], padding_value=0.0
            ).view(-1, LONGEST, 2, DIM // 2)
            for part in (query, key, value)
        )
        weight = F.silu(torch.einsum("bnhd,bmhd->bhnm", query, key)) / LONGEST * self.before
        read = torch.einsum("bhnm,bmhd->bnhd", weight, value).reshape(-1, LONGEST, DIM)
        (read, _) = fbgemm.dense_to_jagged(read, [ends])
        return self.out(gate * F.layer_norm(read, [DIM])) + items


class Histories(nn.Module):
    """What a row's last item has become. `padded`: whether requests have rows of `LONGEST`."""

    def __init__(self, padded: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.padded = padded
        self.items, self.place = nn.Embedding(40, DIM), nn.Embedding(LONGEST, DIM)
        self.units = nn.ModuleList([Unit(), Unit()])

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        ends = fbgemm.asynchronous_complete_cumsum(lengths)
        items = self.items(ids)
        if self.padded:
            items, _ = fbgemm.dense_to_jagged(items, [ends])
        place = self.place.weight.expand(lengths.shape[0], LONGEST, DIM)
        items, _ = fbgemm.jagged_dense_elementwise_add_jagged_output(items, [ends], place)
        for unit in self.units:
            items = unit(items, ends)
        rows = fbgemm.jagged_to_padded_dense(items, [ends], [LONGEST], 0.5)
        last = (lengths - 1).clamp(0, LONGEST - 1).view(-1, 1, 1).expand(-1, 1, DIM)
        return rows.gather(1, last).squeeze(1)


def asked(padded: bool, lengths: list[int]) -> dict[str, Tensor]:
    shape = (len(lengths), LONGEST) if padded else (sum(lengths),)
    draw = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(0, 40, shape, generator=draw)
    return {"ids": ids, "lengths": torch.tensor(lengths)}


@pytest.mark.parametrize(
    "compiler", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)]
)
@pytest.mark.parametrize("padded", [True, False])
def test_histories_equal_eager(padded: bool, compiler: str, tmp_path: Path) -> None:
    model, out = Histories(padded).eval(), tmp_path / "m.rr"
    buckets = [4] if compiler == "inductor" else [1, 4]
    options: dict[str, Any] = {"out": out, "buckets": buckets, "compiler": compiler}
    if not padded:
        options["jagged"] = [Jagged("ids", lengths="lengths", capacity=4)]
    capture(model, asked(padded, [2, 6, 3, 5]), **options)
    with Runtime.load(out) as runtime:
        for lengths in ([4], [1, 6, 3], [2, 5, 1, 4], [6, 1, 2, 3, 4, 1]):
            request = asked(padded, lengths)
            got = runtime.run(request)["output"]
            with torch.no_grad():
                want = model(**request).numpy()
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


class Read(nn.Module):
    """What `read` makes of the items of padded rows, and of where they end."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        ends = fbgemm.asynchronous_complete_cumsum(lengths)
        items, _ = fbgemm.dense_to_jagged(x, [ends])
        return self.read(items * 2, ends)


def of_its_row(items: Tensor, ends: Tensor) -> Tensor:
    row = torch.searchsorted(ends, torch.arange(items.shape[0]), right=True) - 1
    return fbgemm.jagged_to_padded_dense(items + row.unsqueeze(1), [ends], [LONGEST]).sum(1)


@pytest.mark.parametrize(
    ("problem", "read"),
    [
        (
            "'__getitem__' may work on more than each item by itself",
            lambda items, ends: items[ends[1:] - 1],
        ),
        (
            "'segment_reduce' may work on more than each item by itself",
            lambda t, e: torch.segment_reduce(t, "sum", offsets=e),
        ),
        ("'add' may work on more than each item by itself", of_its_row),
        (
            "jagged_to_padded_dense to 12 places is not to as many",
            lambda items, ends: fbgemm.jagged_to_padded_dense(items, [ends], [12]).flatten(1),
        ),
    ],
)
def test_items_of_padded_rows_are_worked_on_one_by_one(
    problem: str, read: Callable[[Tensor, Tensor], Tensor], tmp_path: Path
) -> None:
    """Where all lists are as long as the rows, nothing else would tell."""
    example = {"x": torch.randn(4, LONGEST, DIM), "lengths": torch.full((4,), LONGEST)}
    with pytest.raises(
        UnsupportedModelError,
        match="^where fbgemm's dense_to_jagged makes lists of padded rows, a captured graph keeps "
        rf"all their places, and {problem}; read the padded rows, or pad the items again "
        r"\(jagged_to_padded_dense\) to as many places before$",
    ):
        capture(Read(read).eval(), example, out=tmp_path / "m.rr", buckets=[4], compiler="eager")


def by_its_own(items: Tensor, ends: Tensor) -> Tensor:
    weights = torch.arange(DIM * DIM).view(DIM, DIM).float().expand(items.shape[0], DIM, DIM)
    made = torch.bmm(items.unsqueeze(1), weights).squeeze(1)
    return fbgemm.jagged_to_padded_dense(made, [ends], [LONGEST]).sum(1)


def test_one_weight_for_all_items_is_none_of_them(tmp_path: Path) -> None:
    model, draw = Read(by_its_own).eval(), torch.Generator().manual_seed(0)
    x = torch.randn(4, LONGEST, DIM, generator=draw)
    example = {"x": x, "lengths": torch.tensor([2, 0, 6, 3])}
    capture(model, example, out=tmp_path / "m.rr", buckets=[4], compiler="eager")
    with Runtime.load(tmp_path / "m.rr") as runtime:
        got = runtime.run(example)["output"]
    np.testing.assert_allclose(got, model(**example).numpy(), rtol=1e-4, atol=1e-5)
