"""Layers and batched products of one column, which CUDA has no call of their own for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import pipeline
from recreplay.capture.compilers.inductor import AUTOTUNED
from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.inline_linears import inline_columns
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime

Capture = Callable[..., Path]
aten = torch.ops.aten
ROWS = 40  # far beyond what is inlined in the smallest bucket for its size


class Scores(nn.Module):
    """One column with a bias, one without, one of three-dimensional rows, towers of one column, and
    layers and products of two, which stay."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.score, self.bare = nn.Linear(700, 1), nn.Linear(700, 1, bias=False)
        self.items, self.two = nn.Linear(70, 1), nn.Linear(700, 2)
        self.register_buffer("towers", torch.randn(3, 700, 1))
        self.register_buffer("biases", torch.randn(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        items = torch.softmax(self.items(x.view(-1, 10, 70)), 1).squeeze(2)
        lanes = x.expand(3, -1, -1)
        towers = torch.baddbmm(self.biases, lanes, self.towers) + torch.bmm(lanes, self.towers)
        wide = torch.bmm(lanes, torch.cat([self.towers, self.towers], 2)).sum(0)
        both = [self.score(x), self.bare(x).relu(), self.two(x), items, wide]
        return torch.cat([*both, towers.squeeze(2).t()], dim=1).sigmoid()


def test_what_has_one_column_is_inlined_and_nothing_else() -> None:
    program: Program = specialise(ingest(Scores().eval(), {"x": torch.randn(3, 700)}), ROWS)
    inline_columns(program)
    targets = Counter(n.target for n in program.graph.nodes)
    assert targets[aten.linear.default] == 1
    assert targets[aten.bmm.default] == 1
    assert aten.baddbmm.default not in targets
    assert targets[aten.sum.dim_IntList] == 6  # of which one is the model's


@pytest.mark.usefixtures("on_cpu")
def test_scores_are_the_models(captured: Capture) -> None:
    model = Scores().eval()
    path = captured(model, {"x": torch.randn(3, 700)}, rewrites=("inline_columns",))
    with Runtime.load(path) as runtime, torch.inference_mode():
        for rows in (1, 3, 9):
            x = torch.randn(rows, 700, generator=torch.Generator().manual_seed(rows))
            got = runtime.run({"x": x.numpy()})["output"]
            np.testing.assert_allclose(got, model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_where_it_applies() -> None:
    for compiler in ("inductor", AUTOTUNED):
        assert "inline_columns" in pipeline._useless_rewrites(compiler, "cpu")
        assert "inline_columns" not in pipeline._useless_rewrites(compiler, "cuda")
    assert "inline_columns" in pipeline._useless_rewrites("eager", "cuda")
