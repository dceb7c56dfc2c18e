"""`bench --suite precision`: what lower precision of trunk and tables gains, and what it costs.

One model is captured in each precision and all are replayed in one run, in turns. What one pays is
the error that capture found against the float32 model, over the output's scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType

from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import CaptureError
from recreplay.tools import strict, tables
from recreplay.tools.bench.captured import Captured, captured
from recreplay.tools.bench.report import machine
from recreplay.tools.bench.requests import COUNT, as_arrays, random_requests
from recreplay.tools.bench.rounds import Spread, latencies, play
from recreplay.tools.bench.stamp import heading
from recreplay.tools.bench.suites import Benchmark
from recreplay.tools.bench.variants import WARM_UP, Variant
from recreplay.tools.console import Progress
from recreplay.tools.quiet import quiet

KIND = "recreplay-bench-precision"
SIZES = (1, 16, 128)
BENCHMARKS = tuple(
    Benchmark(f"recreplay.models:{name}", arguments, SIZES, SIZES)
    for name, arguments in (
        ("ncf", ()),
        ("mt_wide_deep", ("rows_scale=0.1",)),
        ("dlrm_rmc1", ("rows_scale=0.1",)),
    )
)
# Of the trunk and of the tables; the first is what the others are compared with.
PRECISIONS = (
    ("fp32", "fp32"),
    ("tf32", "fp32"),
    ("bf16", "fp32"),
    ("fp16", "fp32"),
    ("fp32", "fp16"),
    ("bf16", "fp16"),
    ("fp32", "int8"),
)


def measure(
    benchmarks: Sequence[Benchmark],
    runs: int,
    progress: Progress,
    settings: dict[str, Any],
    strict_mode: bool = False,
) -> dict[str, Any]:
    """The report: for each model and batch, every precision that the device can run."""
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
    refused: dict[str, str] = {}
    models: list[Captured] = []
    variants: list[Variant] = []
    with contextlib.ExitStack() as stack:
        for trunk, rows in PRECISIONS:
            name = f"{trunk}, tables {rows}"
            chosen = {**settings, "precision": trunk, "table_precision": rows}
            try:
                model = stack.enter_context(
                    captured(benchmark, progress, chosen, strict_mode=strict_mode)
                )
            except CaptureError as error:
                refused[name] = str(error)
                continue
            models.append(model)
            variants.append(Variant(name, model, settings["device"]))
            stack.callback(variants[-1].close)
        first, batches = models[0], []
        for batch in benchmark.batches:
            progress(f"{first.target.name}: batch {batch}, {runs} rounds of {len(variants)}")
            artifact = open_artifact(first.path)
            requests = random_requests(first.target, artifact, batch, COUNT, 7)
            with quiet():
                for variant in variants:
                    variant.prepare([as_arrays(request) for request in requests])
                play(variants, COUNT, min(runs, WARM_UP))
                batches.append(_batch(batch, variants, play(variants, COUNT, runs)))
        return {
            **first.to_json(),
            "notices": strict.remarks(first.manifest),
            "refused": refused,
            "weight_bytes": {v.name: v.weights for v in variants},
            "batches": batches,
        }


def _batch(batch: int, variants: Sequence[Variant], found: dict[str, list[int]]) -> dict[str, Any]:
    percentiles, base = latencies(found), found[variants[0].name]
    return {
        "batch": batch,
        "precisions": [
            {
                "name": v.name,
                "latency_us": percentiles[v.name].to_json(),
                "to_float32": Spread.of(base, found[v.name]).to_json(),
                "error": _error(v, batch),
            }
            for v in variants
        ],
    }


def _error(variant: Variant, batch: int) -> float:
    """The largest error of an output over its scale, as capture found it."""
    (parity,) = (p for p in variant.manifest.parity if p.bucket == batch)
    return max(o.max_abs / o.scale for o in parity.outputs)


def render(report: dict[str, Any]) -> Iterator[RenderableType]:
    """A table a model."""
    for result in report["results"]:
        yield tables.table(
            f"{result['name']} ({result['compiler']})",
            ("batch>", "precision", "p50>", "faster>", "middle half>", "error>", "weights>"),
            [
                (
                    batch["batch"],
                    p["name"],
                    tables.micros(p["latency_us"]["p50"]),
                    f"{p['to_float32']['ratio']:.2f}x",
                    f"{p['to_float32']['p25']:.2f}-{p['to_float32']['p75']:.2f}",
                    f"{p['error']:.1e}",
                    tables.size(result["weight_bytes"][p["name"]]),
                )
                for batch in result["batches"]
                for p in batch["precisions"]
            ],
        )
        for name, why in result["refused"].items():
            yield f"{name}: {why}"
    yield (
        f"{report['runs']} rounds of all precisions in turn, over {report['requests']} requests; "
        "arrays on the host in and out. Medians in microseconds. Faster: ratio of the medians to "
        "float32, and the middle half of the rounds' ratios. Error: the largest of an output over "
        f"its scale.\n{machine(report['stamp'])}"
    )
