"""Replay equals eager: every model, strategy and batch, and whatever was in the padding before."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recreplay.capture import REWRITES, capture, pipeline
from recreplay.capture.assign import STRATEGIES
from recreplay.capture.compilers.toolchain import inductor_problem
from recreplay.capture.ingest import Ingested, ingest
from recreplay.models import MODELS, Ranker
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact

BUCKETS = (2, 8)
BATCHES = (1, 2, 3, 7, 8, 9, 20)  # each edge and its neighbours, and 2.5 times the largest
# What makes a model quick to capture: shorter sequences and fewer branches, all else as published.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "din": {"length": 12},
    "dien": {"length": 5},
    "streamrec": {"features": 9, "lookups": 5},
}
COMBINATIONS = [(s, True) for s in STRATEGIES] + [("single", False), ("matching", False)]
# Of each kind: many branches, histories, recurrent steps, several outputs. Of the others one each.
KINDS = {"dlrm", "streamrec", "dien", "mt_wide_deep", "two_tower"}
CASES = [(m, *way) for m in sorted(MODELS) for way in COMBINATIONS if m in KINDS]
CASES += [(m, "matching", True) for m in sorted(MODELS.keys() - KINDS)]


class Exported:
    """One model and its export, which all captures of this module share."""

    def __init__(self, name: str) -> None:
        arguments = {"rows_scale": 1e-4, **ARGUMENTS.get(name, {})}
        self.model: Ranker = MODELS[name].factory(**arguments)
        self.ingested = ingest(self.model, self.model.example_inputs(4))
        self.requests = {n: self.model.example_inputs(n, seed=n) for n in BATCHES}
        self.answers = {n: self.ingested.eager(r) for n, r in self.requests.items()}


@cache
def exported(name: str) -> Exported:
    return Exported(name)


def compare(runtime: Runtime, exported: Exported, rows: int) -> None:
    got = runtime.run({k: v.numpy() for k, v in exported.requests[rows].items()})
    expected = exported.answers[rows]
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].shape == tuple(value.shape)
        np.testing.assert_allclose(got[name], value.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "strategy", "rewrite"), CASES)
def test_every_batch_equals_eager(
    name: str, strategy: str, rewrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported(name)

    def export_once(model: Any, example: Any, **told: Any) -> Ingested:
        return made.ingested

    monkeypatch.setattr(pipeline, "ingest", export_once)
    manifest = capture(
        made.model,
        out=tmp_path / "m.rr",
        buckets=BUCKETS,
        strategy=strategy,
        compiler="eager",
        rewrites=REWRITES if rewrite else (),
    )
    assert [p.bucket for p in manifest.parity] == list(BUCKETS)
    assert manifest.buckets[0].plan.strategy == strategy
    with Runtime.load(tmp_path / "m.rr") as runtime:
        for rows in BATCHES:
            compare(runtime, made, rows)
        for rows in reversed(BATCHES):  # and with the traces of others in the buffers
            compare(runtime, made, rows)


# Padding

EXTREMES = (0x00, 0x7F, 0xFF)  # as ids: zeros, far above and below; as floats: zero, huge, NaN


@pytest.mark.parametrize("rewrites", [REWRITES, ()])
@pytest.mark.parametrize("name", ["dlrm", "din", "mt_wide_deep"])
def test_what_lies_in_the_padding_never_shows(
    name: str, rewrites: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = {"dlrm": {"tables": 5}, "mt_wide_deep": {"tasks": 2}}
    arguments = {**ARGUMENTS, **fewer}[name]
    model = MODELS[name].factory(rows_scale=1e-4, **arguments)
    ingested = ingest(model, model.example_inputs(4))
    monkeypatch.setattr(pipeline, "ingest", lambda model, example, **told: ingested)
    options: Any = {"compiler": "eager", "rewrites": rewrites}
    capture(model, out=tmp_path / "padded.rr", buckets=[8], **options)
    capture(model, out=tmp_path / "exact.rr", buckets=[3], **options)
    request = {k: v.numpy() for k, v in model.example_inputs(3, seed=5).items()}
    with (
        Runtime.load(tmp_path / "padded.rr") as padded,
        Runtime.load(tmp_path / "exact.rr") as exact,
    ):
        expected = exact.run(request)
        first = padded.run(request)
        for byte in EXTREMES:
            lease = padded._lanes.take()
            lease.lane.host_inputs().fill(byte)
            lease.lane._arena.fill_(byte)
            padded._lanes.put(lease)
            again = padded.run(request)
            for key, value in expected.items():
                np.testing.assert_array_equal(again[key], first[key])
                np.testing.assert_allclose(again[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38])
def test_an_extreme_row_touches_no_other_row(odd: float, tmp_path: Path) -> None:
    model = MODELS["dlrm"].factory(tables=3, rows_scale=1e-3)
    capture(model, out=tmp_path / "m.rr", buckets=[8], compiler="eager")
    request = {k: v.numpy() for k, v in model.example_inputs(8, seed=1).items()}
    with Runtime.load(tmp_path / "m.rr") as runtime:
        clean = runtime.run(request)["output"]
        spoiled = {**request, "dense": request["dense"].copy()}
        spoiled["dense"][[0, 5]] = odd
        dirty = runtime.run(spoiled)["output"]
        others = [1, 2, 3, 4, 6, 7]
        np.testing.assert_array_equal(dirty[others], clean[others])
        assert not np.array_equal(dirty[[0, 5]], clean[[0, 5]])
        after = runtime.run({k: v[1:3] for k, v in request.items()})["output"]
        np.testing.assert_allclose(after, clean[1:3], rtol=1e-5, atol=1e-6)


# Compiled segments

needs_compiler = pytest.mark.skipif(
    inductor_problem("cpu") is not None, reason=str(inductor_problem("cpu"))
)


@pytest.mark.inductor
@needs_compiler
@pytest.mark.parametrize(
    ("name", "arguments", "options", "packages"),
    [
        ("dlrm", {"tables": 4, "lookups": 3}, {"strategy": "single", "buckets": [2, 8]}, 2),
        (
            "streamrec",
            {"features": 4, "lookups": 3, "dims": (8, 16), "dense": 0},
            {"strategy": "feature", "rewrites": (), "buckets": [8]},
            3,  # one for each width, and the trunk
        ),
    ],
)
def test_compiled_segments_equal_eager(
    name: str, arguments: dict[str, Any], options: dict[str, Any], packages: int, tmp_path: Path
) -> None:
    model = MODELS[name].factory(rows_scale=1e-3, **arguments)
    capture(model, out=tmp_path / "m.rr", compiler="inductor", **options)
    manifest = open_artifact(tmp_path / "m.rr").manifest
    assert {p.compiler for p in manifest.packages.values()} == {"inductor"}
    assert len(manifest.packages) == packages
    with Runtime.load(tmp_path / "m.rr") as runtime:
        for rows in (*BATCHES, *reversed(BATCHES)):
            request = model.example_inputs(rows, seed=rows)
            with torch.inference_mode():
                expected = model(**model.arguments(request)).numpy()
            got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
