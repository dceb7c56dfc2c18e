"""Eager against replay, pair by pair: the report of `recreplay bench` without peers."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recreplay.tools import strict
from recreplay.tools.bench.captured import captured
from recreplay.tools.bench.report import KIND
from recreplay.tools.bench.suites import Benchmark
from recreplay.tools.console import Progress

if TYPE_CHECKING:
    from torch import Tensor


def measure(
    benchmarks: Sequence[Benchmark],
    runs: int,
    progress: Progress,
    settings: dict[str, Any],
    example: dict[str, Tensor] | None = None,
    strict_mode: bool = False,
) -> dict[str, Any]:
    """The report: a stamp, and a result for each model."""
    from recreplay.tools.bench.stamp import heading

    report: dict[str, Any] = {**heading(KIND, runs), "results": []}
    for benchmark in benchmarks:
        result = _measure_one(benchmark, runs, progress, settings, example, strict_mode)
        report["results"].append(result)
        gc.collect()  # tables of the model before take gigabytes
    return report


def _measure_one(
    benchmark: Benchmark,
    runs: int,
    progress: Progress,
    settings: dict[str, Any],
    example: dict[str, Tensor] | None,
    strict_mode: bool,
) -> dict[str, Any]:
    from recreplay.tools.bench.compare import Session

    measured = []
    with captured(benchmark, progress, settings, example, strict_mode) as model:
        if strict_mode:
            strict.refuse(model.notices())
        name = model.target.name
        with Session(model.target, model.path, settings["device"]) as session:
            for batch in benchmark.batches:
                progress(f"{name}: batch {batch}, {runs} pairs of eager and replay")
                measured.append(session.compare(batch, runs))
    return {
        **model.to_json(),
        "notices": model.notices(),
        "batches": [m.to_json() for m in measured],
    }
