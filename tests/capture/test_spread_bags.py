"""Bags as lookups and sums: which of them, and that nobody can tell from the scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import pipeline
from recreplay.capture.ingest import ingest
from recreplay.capture.planning import survey
from recreplay.capture.rewrites.spread_bags import spread_bags
from recreplay.capture.rewrites.stack_lookups import stack_lookups
from recreplay.capture.specialise import specialise
from recreplay.models import MODELS
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact

Capture = Callable[..., Path]
aten = torch.ops.aten


class Bags(nn.Module):
    """Bags of one length by sum and mean, and one whose rows have factors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.sums = nn.EmbeddingBag(9, 4, mode="sum")
        self.means = nn.EmbeddingBag(8, 4, mode="mean")
        self.scaled = nn.EmbeddingBag(7, 3, mode="sum")

    def forward(self, ids: Tensor, factors: Tensor) -> Tensor:
        scaled = self.scaled(ids, per_sample_weights=factors)
        return torch.cat([self.sums(ids), self.means(ids), scaled], dim=1)


def example(rows: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    ids = torch.randint(0, 7, (rows, 5), generator=draw)
    return {"ids": ids, "factors": torch.randn(rows, 5, generator=draw)}


def test_only_plain_bags_of_one_length_are_spread() -> None:
    made = specialise(ingest(Bags().eval(), example(3)), 4)
    spread_bags(made)
    targets = [n.target for n in made.graph.nodes]
    assert targets.count(aten.embedding.default) == 2
    assert targets.count(aten.embedding_bag.padding_idx) == 1
    assert targets.count(aten.sum.dim_IntList) == targets.count(aten.mean.dim) == 1


def test_stacked_bags_are_one_lookup_and_one_sum() -> None:
    model = MODELS["dlrm"].factory(tables=5, rows_scale=1e-3)
    ingested = ingest(model, model.example_inputs(4))
    made = specialise(ingested, 4)
    stack_lookups(made, survey(ingested, 4, ("stack_lookups",)).tables)
    spread_bags(made)
    targets = [n.target for n in made.graph.nodes]
    assert aten.embedding_bag.padding_idx not in targets
    (rows,) = [n for n in made.graph.nodes if n.target is aten.embedding.default]
    assert tuple(rows.meta["val"].shape) == (5 * 4, 20, 32)


def test_where_it_applies() -> None:
    assert "spread_bags" in pipeline._useless_rewrites("inductor", "cpu")
    assert "spread_bags" in pipeline._useless_rewrites("eager", "cuda")
    assert "spread_bags" not in pipeline._useless_rewrites("inductor", "cuda")


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", ["bags", "dlrm", "din", "two_tower"])
def test_scores_are_the_models(captured: Capture, name: str) -> None:
    model: Any = Bags() if name == "bags" else MODELS[name].factory(rows_scale=1e-3)
    rewrites = ("stack_lookups", "spread_bags")
    path = captured(model, example(3) if name == "bags" else None, rewrites=rewrites)
    operators = str([s.operators for b in open_artifact(path).manifest.buckets for s in b.segments])
    assert "embedding" in operators
    with Runtime.load(path) as runtime, torch.inference_mode():
        for rows in (1, 2, 4, 9):
            request = example(rows) if name == "bags" else model.example_inputs(rows, seed=rows)
            arguments = request if name == "bags" else model.arguments(request)
            got = runtime.run({k: v.numpy() for k, v in request.items()})
            want = model(**arguments)
            np.testing.assert_allclose(got["output"], want.numpy(), rtol=1e-4, atol=1e-5)
