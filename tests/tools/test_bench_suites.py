"""Suites that are more than sets of models: overhead, scaling, precision, cartesian."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from recreplay.capture.compilers import toolchain
from recreplay.tools.bench import cartesian, overhead, precisions, scaling
from recreplay.tools.bench.scaling import SERIES, Series, Stages, exponent
from recreplay.tools.bench.suites import Benchmark

SMALL = (Benchmark("recreplay.models:rm_small", ("rows_scale=0.00001",), (1, 4), (1, 4)),)
JAGGED = (Benchmark("recreplay.models:two_tower", ("rows_scale=0.0001",), (1, 16), (1, 4)),)


@pytest.mark.parametrize(("benchmarks", "inputs"), [(SMALL, 27), (JAGGED, 10)])
def test_overhead(
    report: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    benchmarks: tuple[Benchmark, ...],
    inputs: int,
) -> None:
    monkeypatch.setattr(overhead, "BENCHMARKS", benchmarks)
    found = report("bench", "--suite", "overhead", "--compiler", "eager", "--runs", "20")
    assert found["kind"] == "recreplay-bench-overhead"
    (model,) = found["results"]
    assert model["inputs"] == inputs
    assert [b["batch"] for b in model["batches"]] == [1, 4]
    for batch in model["batches"]:
        views = batch["borrowed"]
        for side in (batch, views):
            assert 0 < side["overhead_us"]["p50"] < side["run_us"]["p50"]
        assert 0 < views["writes_us"]["p50"] < views["run_us"]["p50"]
        assert batch["graph_us"]["p50"] < batch["run_us"]["p50"]


def test_scaling(
    invoke: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "FEATURES", 1)
    monkeypatch.setattr(scaling, "SERIES", (Series("buckets", "eager", (1, 2)),))
    out = tmp_path / "scaling.json"
    result = invoke("bench", "--suite", "scaling", "--out", out)
    assert result.exit_code == 0, result.stderr
    for words in ("Capture against buckets (eager)", "exponent", "lane", "1 is linear"):
        assert words in result.stdout
    found = json.loads(out.read_text())
    assert found["kind"] == "recreplay-bench-scaling"
    (series,) = found["results"]
    first, second = series["points"]
    assert (first["value"], second["value"]) == (1, 2)
    for point in (first, second):
        stages = [point[f"{s}_seconds"] for s in ("export", "plan", "compile", "verify")]
        assert min(stages) >= 0
        assert sum(stages) <= point["total_seconds"] + 0.01
        assert point["export_seconds"] > 0
    assert second["lane_bytes"] == first["lane_bytes"] > 0  # buckets share their memory
    assert second["artifact_bytes"] > first["artifact_bytes"] > 0
    assert series["exponents"]["lane_bytes"] == 0
    powers = [series["exponents"][n] for n in ("total_seconds", "artifact_bytes", "lane_bytes")]
    assert series["near_linear"] is (max(powers) <= 1.2)


def test_precision(report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "BENCHMARKS", SMALL)
    found = report("bench", "--suite", "precision", "--compiler", "eager", "--runs", "5")
    assert found["kind"] == "recreplay-bench-precision"
    (model,) = found["results"]
    assert "TF32 is a mode of CUDA" in model["refused"]["tf32, tables fp32"]
    measured = [f"{a}, tables {b}" for a, b in precisions.PRECISIONS]
    measured = [name for name in measured if name not in model["refused"]]
    nbytes = model["weight_bytes"]
    assert nbytes["fp32, tables fp16"] < nbytes["fp32, tables fp32"]
    assert [b["batch"] for b in model["batches"]] == [1, 4]
    for batch in model["batches"]:
        assert [p["name"] for p in batch["precisions"]] == measured
        exact, *lower = batch["precisions"]
        assert exact["to_float32"] == {"ratio": 1.0, "p25": 1.0, "p75": 1.0}
        assert exact["error"] < 1e-5 < max(p["error"] for p in lower)


def test_cartesian(report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    small = (Benchmark("recreplay.models:microrec_47", ("rows_scale=0.001",), (1, 4), (1, 4)),)
    monkeypatch.setattr(cartesian, "BENCHMARKS", small)
    found = report("bench", "--suite", "cartesian", "--compiler", "eager", "--runs", "5")
    assert found["kind"] == "recreplay-bench-cartesian"
    (model,) = found["results"]
    assert model["tables"] == {"separate tables": 47, "Cartesian tables": 41}
    assert model["weight_bytes"]["separate tables"] < model["weight_bytes"]["Cartesian tables"]
    assert [b["batch"] for b in model["batches"]] == [1, 4]
    for batch in model["batches"]:
        p50 = [batch["latency_us"][name]["p50"] for name in model["tables"]]
        assert batch["to_separate"]["ratio"] == pytest.approx(p50[0] / p50[1], abs=2e-3)
        assert batch["max_abs_error"] < 1e-6


@pytest.mark.parametrize("suite", ["overhead", "precision", "cartesian"])
def test_suites_of_their_own_are_strict_too(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, suite: str
) -> None:
    monkeypatch.setattr(toolchain, "cxx_compiler", lambda: None)
    module = {"overhead": overhead, "precision": precisions, "cartesian": cartesian}[suite]
    tiny = (Benchmark("recreplay.models:rm_small", ("rows_scale=0.00001",), (1,), (1,)),)
    monkeypatch.setattr(module, "BENCHMARKS", tiny)
    result = invoke("bench", "--suite", suite, "--runs", "2", "--strict")
    assert result.exit_code == 1
    assert "--strict: no C++ compiler" in result.stderr


def test_options_that_do_not_fit(invoke: Callable[..., Result]) -> None:
    result = invoke("bench", "--suite", "scaling", "--peers", "all", "--buckets", "1")
    assert result.exit_code == 1
    assert "--suite scaling measures models, sizes and peers of its own" in result.stderr
    assert "leave out --peers, --buckets" in result.stderr


def test_exponents() -> None:
    assert exponent([1, 2, 4, 8], [3, 6, 12, 24]) == 1.0
    assert exponent([1, 2, 4], [5, 20, 80]) == 2.0
    assert exponent([1, 2, 4], [7, 7, 7]) == 0.0
    assert exponent([1, 2], [0.0, 3.0]) is None


def test_what_scaling_measures() -> None:
    assert max(v for s in SERIES if s.grows == "features" for v in s.values) == 400
    assert SERIES[0].capture(25) == (25, (1, 16))
    assert Series("buckets", "eager", (4,)).capture(4) == (8, (48, 96, 144, 192))


def test_stages_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 4.0, 10.0, 11.0, 15.0])
    monkeypatch.setattr(scaling.time, "perf_counter", lambda: next(clock))
    stages = Stages()
    for message in ("exporting", "bucket 1: 9 operators", "bucket 16: 9", "writing weights"):
        stages(message)
    stages("recording and verifying")
    assert stages.end() == 15.0
    assert stages.seconds() == {
        "export_seconds": 3.0,
        "plan_seconds": 1.0,
        "compile_seconds": 6.0,
        "verify_seconds": 4.0,
    }
