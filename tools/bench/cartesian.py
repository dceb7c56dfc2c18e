"""`bench --suite cartesian`: what MicroRec's Cartesian tables gain beside the separate ones.

Both forms of a model are captured and replayed in one run, in turns, on requests for the same rows.
Requests of the Cartesian form have joint ids already, so that making them costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from recreplay.tools import strict, tables
from recreplay.tools.bench.captured import captured
from recreplay.tools.bench.compare import largest_difference
from recreplay.tools.bench.report import machine
from recreplay.tools.bench.requests import COUNT, as_arrays
from recreplay.tools.bench.rounds import Spread, latencies, play
from recreplay.tools.bench.stamp import heading
from recreplay.tools.bench.suites import Benchmark
from recreplay.tools.bench.variants import WARM_UP, Variant
from recreplay.tools.console import Progress
from recreplay.tools.quiet import quiet

if TYPE_CHECKING:
    from recreplay.models.microrec import CartesianMicroRec, MicroRec

KIND = "recreplay-bench-cartesian"
SIZES = (1, 16, 128)
BENCHMARKS = (
    Benchmark("recreplay.models:microrec_47", (), SIZES, SIZES),
    Benchmark("recreplay.models:microrec_98", ("rows_scale=0.1",), SIZES, SIZES),
)
SEPARATE, JOINT = "separate tables", "Cartesian tables"


def measure(
    benchmarks: Sequence[Benchmark],
    runs: int,
    progress: Progress,
    settings: dict[str, Any],
    strict_mode: bool = False,
) -> dict[str, Any]:
    """The report: for each model and batch, its separate and its Cartesian tables."""
    return {
        **heading(KIND, runs),
        "results": [_measure_one(b, runs, progress, settings, strict_mode) for b in benchmarks],
    }


def _measure_one(
    benchmark: Benchmark,
    runs: int,
    progress: Progress,
    settings: dict[str, Any],
    strict_mode: bool,
) -> dict[str, Any]:
    combined = replace(benchmark, arguments=(*benchmark.arguments, "cartesian=true"))
    with (
        captured(benchmark, progress, settings, strict_mode=strict_mode) as separate,
        captured(combined, progress, settings, strict_mode=strict_mode) as joint,
        contextlib.closing(Variant(SEPARATE, separate, settings["device"])) as one,
        contextlib.closing(Variant(JOINT, joint, settings["device"])) as other,
    ):
        models: tuple[Any, Any] = (separate.target.model, joint.target.model)
        batches = []
        for batch in benchmark.batches:
            progress(f"{separate.target.name}: batch {batch}, {runs} rounds of both")
            with quiet():
                batches.append(_batch(batch, runs, *models, one, other))
        return {
            **separate.to_json(),
            "notices": [*strict.remarks(one.manifest), *strict.remarks(other.manifest)],
            "tables": {v.name: len(v.manifest.inputs) for v in (one, other)},
            "weight_bytes": {v.name: v.weights for v in (one, other)},
            "batches": batches,
        }


def _batch(
    batch: int,
    runs: int,
    separate: MicroRec,
    joint: CartesianMicroRec,
    one: Variant,
    other: Variant,
) -> dict[str, Any]:
    requests = [separate.example_inputs(batch, seed) for seed in range(COUNT)]
    one.prepare([as_arrays(request) for request in requests])
    other.prepare([as_arrays(joint.joint_inputs(request)) for request in requests])
    worst = max(
        largest_difference(other.answer(i), one.answer(i), "the one of separate tables")
        for i in range(COUNT)
    )
    play((one, other), COUNT, min(runs, WARM_UP))
    found = play((one, other), COUNT, runs)
    return {
        "batch": batch,
        "latency_us": {name: latency.to_json() for name, latency in latencies(found).items()},
        "to_separate": Spread.of(found[SEPARATE], found[JOINT]).to_json(),
        "max_abs_error": worst,
    }


def render(report: dict[str, Any]) -> Iterator[RenderableType]:
    """A table of all models."""
    yield tables.table(
        "Cartesian tables against separate ones",
        ("model", "tables>", "weights>", "batch>", "separate>", "Cartesian>", "faster>", "half>"),
        [
            (
                result["name"],
                " / ".join(str(n) for n in result["tables"].values()),
                " / ".join(tables.size(n) for n in result["weight_bytes"].values()),
                batch["batch"],
                *(tables.micros(batch["latency_us"][name]["p50"]) for name in (SEPARATE, JOINT)),
                f"{batch['to_separate']['ratio']:.2f}x",
                f"{batch['to_separate']['p25']:.2f}-{batch['to_separate']['p75']:.2f}",
            )
            for result in report["results"]
            for batch in result["batches"]
        ],
    )
    yield (
        f"{report['runs']} rounds of both in turn, over {report['requests']} requests for the same "
        "rows, whose joint ids are made beforehand; arrays on the host in and out. Medians in "
        "microseconds. Faster: ratio of the medians, and the middle half of the rounds' ratios.\n"
        f"{machine(report['stamp'])}"
    )
