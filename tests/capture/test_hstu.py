"""HSTU as its authors' code has it: histories between padded rows and lists, by fbgemm's calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recreplay.capture import Jagged, capture
from recreplay.runtime import Runtime

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
    options: dict[str, Any] = {"out": out, "buckets": [1, 4], "compiler": compiler}
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
