"""What follows a matrix product on CUDA: part of it, or of what comes after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import pipeline
from recreplay.capture.choices import Choice, choices
from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.fuse_epilogues import fuse_epilogues
from recreplay.capture.specialise import specialise
from recreplay.models import mt_wide_deep
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact

Capture = Callable[..., Path]
aten = torch.ops.aten
FUSED = "aten._addmm_activation.default"


class Layers(nn.Module):
    """Layers that are followed by a ReLU alone, by more, or by none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.plain, self.wide = nn.Linear(6, 5), nn.Linear(5, 7)
        self.bare, self.read = nn.Linear(7, 4, bias=False), nn.Linear(4, 4)
        self.shown, self.last = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.plain(x))  # fused
        items = torch.relu(self.wide(hidden.unsqueeze(1).expand(-1, 3, -1)))  # fused, of 3-D rows
        bare = torch.relu(self.bare(items.sum(1)))  # has no bias
        read = self.read(bare)  # read before its ReLU
        shown = self.shown(torch.relu(read) + read)  # an output before its ReLU
        return {"shown": shown, "score": torch.sigmoid(self.last(torch.relu(shown)))}


def made(bucket: int) -> Program:
    program = specialise(ingest(Layers().eval(), {"x": torch.randn(3, 6)}), bucket)
    fuse_epilogues(program)
    return program


@pytest.mark.parametrize("bucket", [1, 4])
def test_a_layer_with_bias_and_a_relu_of_its_own_is_one_call(bucket: int) -> None:
    targets = Counter(str(n.target) for n in made(bucket).graph.nodes)
    assert targets[FUSED] == 2
    assert targets["aten.linear.default"] == 4
    assert targets["aten.relu.default"] == 3


def test_the_bias_of_stacked_layers_is_added_afterwards() -> None:
    class Stacked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weight = torch.ones(3, 6, 2)
            return torch.baddbmm(torch.ones(3, 1, 2), x.expand(3, -1, -1), weight).sum(0)

    program = specialise(ingest(Stacked().eval(), {"x": torch.randn(3, 6)}), 4)
    fuse_epilogues(program)
    targets = [n.target for n in program.graph.nodes]
    assert aten.baddbmm.default not in targets
    at = targets.index(aten.bmm.default)
    assert targets[at + 1] is aten.add.Tensor


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("model", [Layers(), mt_wide_deep(rows_scale=1e-3)], ids=["own", "towers"])
def test_scores_are_the_models(captured: Capture, model: nn.Module) -> None:
    def example(rows: int) -> dict[str, Tensor]:
        if isinstance(model, Layers):
            return {"x": torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))}
        made: dict[str, Tensor] = model.example_inputs(rows, seed=rows)
        return made

    rewrites = ("stack_lookups", "stack_branches", "fuse_epilogues")
    path = captured(model, example(3), rewrites=rewrites)
    operators = str([s.operators for b in open_artifact(path).manifest.buckets for s in b.segments])
    assert "_addmm_activation" in operators
    with Runtime.load(path) as runtime, torch.inference_mode():
        for rows in (1, 2, 3, 4, 9):
            request = example(rows)
            arguments = request if isinstance(model, Layers) else model.arguments(request)
            want = model(**arguments)
            if isinstance(want, tuple):
                want = {f"output_{i}": t for i, t in enumerate(want)}
            got = runtime.run({name: value.numpy() for name, value in request.items()})
            for name, value in want.items():
                np.testing.assert_allclose(got[name], value.numpy(), rtol=1e-4, atol=1e-5)


def test_where_it_applies() -> None:
    assert "fuse_epilogues" in pipeline._useless_rewrites("inductor", "cpu")
    assert "fuse_epilogues" not in pipeline._useless_rewrites("eager", "cuda")
    for compiler in ("tensorrt", "inductor-max-autotune"):
        assert "fuse_epilogues" in pipeline._useless_rewrites(compiler, "cuda")


def test_the_tuner_leaves_layers_to_compilers_that_fuse_them() -> None:
    given = Choice(("stack_lookups", "fuse_epilogues"), "matching", 8, "inductor")
    tried = choices("full", given, "cuda", False, tensorrt=True)
    for compiler in ("tensorrt", "inductor-max-autotune"):
        assert {c.rewrites for c in tried if c.compiler == compiler} == {("stack_lookups",)}
    assert {given.rewrites, ("stack_lookups",)} <= {
        c.rewrites for c in tried if c.compiler == "inductor"
    }
