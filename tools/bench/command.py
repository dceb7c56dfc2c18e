"""`recreplay bench`: capture models, measure each against eager, report."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recreplay.tools import options, strict
from recreplay.tools.bench.suites import Benchmark, find_suite
from recreplay.tools.console import Progress, print_json, report_notice, show
from recreplay.tools.files import folder_size, temporary_folder, write_json

if TYPE_CHECKING:
    from torch import Tensor

KIND = "recreplay-bench"
DEFAULT_BUCKETS = (1, 16, 128)


def bench(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Models, named as for capture.", show_default=False)
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="A named set of models: foundation. [dim]Default without a model.[/]"),
    ] = None,
    buckets: Annotated[
        str | None,
        typer.Option(help="Batch sizes to capture. [dim]Default: the suite's, or 1,16,128.[/]"),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(help="Batch sizes to measure. [dim]Default: the suite's, or the buckets.[/]"),
    ] = None,
    runs: Annotated[int, typer.Option(help="Pairs of eager and replay a batch size.", min=2)] = 400,
    device: options.Device = "cpu",
    strategy: options.Strategy = None,
    streams: options.Streams = 8,
    compiler: options.Compiler = None,
    rewrites: options.Rewrites = None,
    arg: options.FactoryArgs = None,
    inputs: options.ExampleFile = None,
    out: Annotated[Path | None, typer.Option(help="Write the report here too, as JSON.")] = None,
    strict_mode: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure eager against replay: one process, one thread, alternating, over many requests."""
    from recreplay.tools.bench.report import render
    from recreplay.tools.capture_model import read_example

    settings = {
        "device": device,
        "strategy": strategy,
        "streams": streams,
        "compiler": compiler,
        "rewrites": options.parse_rewrites(rewrites),
    }
    chosen = choose(targets or (), suite, buckets, batches, arg or ())
    example = None if inputs is None else read_example(inputs)
    with Progress() as progress:
        report = measure(chosen, runs, progress, settings, example, strict_mode)
    if out is not None:
        write_json(out, report)
    if as_json:
        print_json(report)
        return
    show(*render(report))
    for result in report["results"]:
        for notice in result["notices"]:
            report_notice(f"{result['name']}: {notice}")


def choose(
    targets: Sequence[str],
    suite: str | None,
    buckets: str | None,
    batches: str | None,
    arguments: Sequence[str] = (),
) -> list[Benchmark]:
    """What to measure: the named models, and the suite if one is named or nothing else is."""
    sizes = None if buckets is None else tuple(options.parse_sizes(buckets, "--buckets"))
    measured = None if batches is None else tuple(options.parse_sizes(batches, "--batches"))
    given = tuple(arguments)
    captured = sizes or DEFAULT_BUCKETS
    found = [Benchmark(t, given, captured, measured or captured) for t in targets]
    if suite is not None or not targets:
        found += [
            Benchmark(
                b.target,
                (*b.arguments, *given),
                sizes or b.buckets,
                measured or sizes or b.batches,
            )
            for b in find_suite(suite or "foundation").benchmarks
        ]
    return found


def measure(
    benchmarks: Sequence[Benchmark],
    runs: int,
    progress: Progress,
    settings: dict[str, Any],
    example: dict[str, Tensor] | None = None,
    strict_mode: bool = False,
) -> dict[str, Any]:
    """The report: a stamp, and a result for each model."""
    from recreplay.tools.bench.requests import COUNT
    from recreplay.tools.bench.stamp import stamp

    report: dict[str, Any] = {
        "kind": KIND,
        "stamp": stamp(threads=1),
        "runs": runs,
        "requests": COUNT,
        "results": [],
    }
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
    from recreplay.tools.capture_model import capture_target
    from recreplay.tools.target import load_target

    progress(f"loading {benchmark.target}")
    target = load_target(benchmark.target, benchmark.arguments)
    with temporary_folder() as folder:
        path = folder / f"{target.name}.rr"
        manifest = capture_target(
            target,
            path,
            benchmark.buckets,
            lambda message: progress(f"{target.name}: {message}"),
            example=example,
            strict_mode=strict_mode,
            **settings,
        )
        nbytes = folder_size(path)
        measured = []
        with Session(target, path, settings["device"]) as session:
            for batch in benchmark.batches:
                progress(f"{target.name}: batch {batch}, {runs} pairs of eager and replay")
                measured.append(session.compare(batch, runs))
    notices = strict.remarks(manifest)
    notices += [
        f"batch {m.batch} is replayed in parts of {m.bucket}"
        if m.batch > m.bucket
        else f"batch {m.batch} is padded to bucket {m.bucket}"
        for m in measured
        if m.batch != m.bucket
    ]
    if strict_mode:
        strict.refuse(notices)
    return {
        "name": target.name,
        "target": target.text,
        "arguments": target.arguments,
        "buckets": list(benchmark.buckets),
        "device": manifest.device,
        "strategy": manifest.strategy,
        "streams": manifest.streams,
        "compiler": manifest.compiler,
        "rewrites": list(manifest.rewrites),
        "packages": len(manifest.packages),
        "capture_seconds": manifest.capture_seconds,
        "artifact_bytes": nbytes,
        "notices": notices,
        "batches": [m.to_json() for m in measured],
    }
