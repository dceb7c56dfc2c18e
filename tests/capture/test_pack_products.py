"""Products of what a request makes: which are ours, how they lie, and that scores are as eager."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import DEFAULT_REWRITES
from recreplay.capture.ingest import ingest
from recreplay.capture.rewrites.pack_products import pack_products
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.aten import PACKED_LINEAR
from recreplay.runtime.graph import read_graph

Run = Callable[[Tensor, Tensor], Tensor]
aten = torch.ops.aten


class Products(nn.Module):
    """`run` of `a` `[B, 5, 8]` and `b` `[B, 8, 3]`."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.run(a, b)


def heads(a: Tensor, b: Tensor) -> Tensor:
    q, k = (x.view(-1, 5, 2, 4).transpose(1, 2) for x in (a, a * 2))
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ q).transpose(1, 2).flatten(2)


OURS: dict[str, Run] = {
    "bmm": torch.bmm,
    "matmul": lambda a, b: a @ b,
    "followed": lambda a, b: torch.relu(a @ b) + 1,
    "turned right": lambda a, b: a @ a.transpose(1, 2),
    "turned left": lambda a, b: a.transpose(1, 2) @ a,
    "both turned": lambda a, b: b.transpose(1, 2) @ a.transpose(1, 2),
    "one row": lambda a, b: a[:, :1] @ b,
    "one row, turned right": lambda a, b: a[:, :1] @ a.transpose(1, 2),
    "one column": lambda a, b: a @ b[:, :, :1],
    "one column, turned left": lambda a, b: b.transpose(1, 2) @ b[:, :, :1],
    "heads": heads,
    "twice": lambda a, b: (a @ b) @ (a @ b).transpose(1, 2),
    "candidates by einsum": lambda a, b: torch.einsum("bk,bkn->bn", a[:, 0], b),
    "candidates, turned": lambda a, b: torch.einsum("bnk,bk->bn", a, b[:, :, 0]),
    "heads by einsum": lambda a, b: torch.einsum(
        "bihd,bjhd->bhij", *2 * [a.view(-1, 5, 2, 4)]
    ).flatten(1),
    "two sums": lambda a, b: torch.einsum("bijk,bijn->bnk", *2 * [a.view(-1, 5, 4, 2)]),
    "a piece": lambda a, b: a[:, 1:4, 2:6] @ b[:, 2:6],
}
OTHERS: dict[str, Run] = {
    "of matrices": lambda a, b: a[:, 0] @ b[:, :, 0].t() @ b[:, :, 0] * 0,
    "dots": lambda a, b: torch.einsum("bnk,bnk->bn", a, a),
    "stretched": lambda a, b: torch.einsum("bnk,bkm->bnm", a[:, :, :1], b),
    "a broadcast": lambda a, b: a.unsqueeze(2) @ b.unsqueeze(1),
    "doubles": lambda a, b: (a.double() @ b.double()).float(),
    "a vector": lambda a, b: a @ b[0, :, 0] * 0,
}


def targets(run: Run) -> list[str]:
    example = {"a": torch.randn(4, 5, 8), "b": torch.randn(4, 8, 3)}
    program = specialise(ingest(Products(run).eval(), example), 4)
    pack_products(program)
    return [str(n.target) for n in program.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("run", OURS.values(), ids=OURS)
def test_products_of_lanes_are_ours(run: Run) -> None:
    found = targets(run)
    assert PACKED_LINEAR in found
    assert not {"aten.bmm.default", "aten.matmul.default"} & set(found)


@pytest.mark.parametrize("run", OTHERS.values(), ids=OTHERS)
def test_other_products_stay(run: Run) -> None:
    assert PACKED_LINEAR not in targets(run)


@pytest.mark.inductor
@pytest.mark.skipif(platform.machine() != "x86_64", reason="layers are packed on x86-64 alone")
def test_compiled_scores_are_the_models(captured: Callable[..., Path]) -> None:
    class All(Products):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {f"o{i}": run(a, b) for i, run in enumerate(OURS.values())}

    model = All(torch.bmm).eval()
    example = {"a": torch.randn(4, 5, 8), "b": torch.randn(4, 8, 3)}
    rewrites = [name for name in DEFAULT_REWRITES if name != "attend"]  # which takes heads
    options: Any = {"compiler": "inductor", "threads": 2, "rewrites": rewrites}
    path = captured(model, example, buckets=[1, 4, 64], **options)
    operators = [o.target for o in read_graph(path)[64].captured.operators]
    assert operators.count(PACKED_LINEAR) >= len(OURS)
    with Runtime.load(path) as runtime, torch.no_grad():
        for rows in (1, 3, 64, 70):
            x: Any = {"a": torch.randn(rows, 5, 8), "b": torch.randn(rows, 8, 3)}
            got = runtime.run(x)
            for name, want in model(**x).items():
                np.testing.assert_allclose(got[name], want.numpy(), rtol=1e-4, atol=1e-5)
