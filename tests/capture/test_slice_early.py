"""What is computed of results that are read in part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.slice_early import slice_early
from recreplay.capture.specialise import specialise
from recreplay.capture.views import launches
from recreplay.runtime import Runtime
from recreplay.runtime.aten import ATTENTION
from recreplay.runtime.graph import read_graph

aten = torch.ops.aten
Capture = Callable[..., Path]


class Run(nn.Module):
    """`forward` by a function of `x` `[B, 6, 8]` and a layer of 8 to 8."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(x, self.layer, self.norm)


def rewritten(run: Callable[..., Any], rows: int = 4) -> Program:
    program = specialise(ingest(Run(run).eval(), {"x": torch.randn(4, 6, 8)}), rows)
    slice_early(program)
    return program


def first(program: Program) -> Any:
    """What reads the input."""
    return next(n.target for n in program.graph.nodes if n.op == "call_function")


def attention(x: Tensor, *_: Any) -> Tensor:
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    heads = x.unflatten(2, (2, 4)).transpose(1, 2)
    keys = heads * 2
    return F.scaled_dot_product_attention(heads.exp(), keys, keys, mask)[:, :, -1].flatten(1)


MOVES: dict[str, Callable[..., Any]] = {
    "values": lambda x, layer, norm: (x * 2 + x.new_ones(6, 1))[:, -1],
    "a layer": lambda x, layer, norm: layer(x)[:, 2:4],
    "norm": lambda x, layer, norm: norm(x).relu()[:, 0],
    "softmax": lambda x, layer, norm: x.softmax(-1)[:, -2:],
    "sum": lambda x, layer, norm: x.sum(2)[:, 1],
    "kept sum": lambda x, layer, norm: x.mean(2, keepdim=True)[:, 1],
    "transposed": lambda x, layer, norm: layer(x).transpose(1, 2)[:, :, 3],
    "rows first": lambda x, layer, norm: layer(x.transpose(0, 1))[-1],
    "flat": lambda x, layer, norm: layer(x.transpose(0, 1).reshape(-1, 8)).view(6, -1, 8)[-1],
    "heads": lambda x, layer, norm: layer(x).view(-1, 6, 2, 4).exp()[:, 5],
    "merged": lambda x, layer, norm: (x.exp().flatten(1) * 2)[:, 16:24],
    "joined": lambda x, layer, norm: torch.cat([x, layer(x)], 2)[:, -1],
    "widened": lambda x, layer, norm: layer(x).unsqueeze(2).expand(-1, 6, 3, 8)[:, 4],
    "products": lambda x, layer, norm: (x.exp() @ x.exp().transpose(1, 2))[:, -1:],
    "read twice": lambda x, layer, norm: (norm(x) + layer(norm(x)))[:, -1],
    "other cut": lambda x, layer, norm: layer(x)[:, 1:5].exp()[:, -1],
    "attention": attention,
}


def written(program: Program) -> int:
    """Values that operators write."""
    return sum(node.meta["val"].numel() for node in launches(program.graph))


@pytest.mark.parametrize("run", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("rows", [1, 4])
def test_less_is_computed(run: Callable[..., Any], rows: int) -> None:
    whole = specialise(ingest(Run(run).eval(), {"x": torch.randn(4, 6, 8)}), rows)
    assert written(rewritten(run, rows)) < written(whole)


STAYS: dict[str, Callable[..., Any]] = {
    "read whole too": lambda x, layer, norm: (y := layer(x))[:, -1] + y.sum(1),
    "two cuts": lambda x, layer, norm: (y := layer(x))[:, -1] + y[:, 0],
    "along a layer": lambda x, layer, norm: layer(x)[..., 0],
    "along a norm": lambda x, layer, norm: norm(x)[..., 0],
    "along a softmax": lambda x, layer, norm: x.softmax(1)[:, -1],
    "every other": lambda x, layer, norm: layer(x)[:, ::2],
    "across": lambda x, layer, norm: (x.exp().flatten(1) * 2)[:, 12:20].exp(),
    "running": lambda x, layer, norm: x.cumsum(1)[:, -1],
    "all": lambda x, layer, norm: layer(x)[:, :6],
}


@pytest.mark.parametrize("run", STAYS.values(), ids=STAYS)
def test_what_stays(run: Callable[..., Any]) -> None:
    assert first(rewritten(run)) is not aten.slice.Tensor


@pytest.mark.parametrize("run", [*MOVES.values(), *STAYS.values()], ids=[*MOVES, *STAYS])
def test_the_same_comes_out(run: Callable[..., Any], captured: Capture) -> None:
    model, x = Run(run).eval(), torch.randn(4, 6, 8)
    path = captured(model, {"x": x}, buckets=[1, 4])
    with Runtime.load(path) as runtime, torch.no_grad():
        for rows in (1, 3):
            got = runtime.run({"x": x[:rows]})["output"]
            np.testing.assert_allclose(got, model(x[:rows]).numpy(), rtol=1e-5, atol=1e-6)


class Sequence(nn.Module):
    """Two blocks of torch's own attention, of which the last position is read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.items = nn.Embedding(30, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, 1)

    def forward(self, history: Tensor) -> Tensor:
        mask = torch.ones(12, 12, dtype=torch.bool).triu(1)
        blocks = self.blocks(self.items(history), mask, is_causal=False)
        score: Tensor = self.out(blocks[:, -1])
        return score


@pytest.mark.parametrize(
    "compiler", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)]
)
def test_the_last_block_has_one_query(compiler: str, captured: Capture) -> None:
    model, history = Sequence().eval(), torch.randint(0, 30, (8, 12))
    buckets = [8] if compiler == "inductor" else [1, 8]
    path = captured(model, {"history": history}, buckets=buckets, compiler=compiler)
    # Ours has the queries first, as torch's layers lay them.
    queries = {"aten.scaled_dot_product_attention.default": -2, ATTENTION: 0}
    found = [o for o in read_graph(path)[8].captured.operators if o.target in queries]
    assert [o.outputs[0][1][queries[o.target]] for o in found] == [12, 1]
    with Runtime.load(path) as runtime, torch.no_grad():
        for rows in (1, 5):
            got = runtime.run({"history": history[:rows]})["output"]
            want = model(history[:rows]).numpy()
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
