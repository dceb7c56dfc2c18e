"""`recreplay bench`: capture models, measure each against eager or against peers, report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recreplay.runtime.errors import RecReplayError
from recreplay.tools import input_options, options
from recreplay.tools.bench.suites import Benchmark, find_suite
from recreplay.tools.console import Progress, print_json, report_notice, show
from recreplay.tools.files import check_output, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor

DEFAULT_BUCKETS = (1, 16, 128)
# Suites that are more than sets of models.
OWN_MODELS = ("overhead", "scaling", "precision", "cartesian")


def bench(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Models, named as for capture.", show_default=False)
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="foundation, core, jagged, deeprecinfra, microrec: named sets of models; "
            "overhead: what the host adds to a replay; scaling: capture against features and "
            "buckets; precision: lower precision of trunk and tables against float32; "
            "cartesian: MicroRec's joint tables against separate ones. "
            "[dim]Default without a model: foundation.[/]"
        ),
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Only these models of the suite, separated by commas.")
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Measure against these too, separated by commas: all, compile, "
            "reduce_overhead, max_autotune, aotinductor, aotinductor_static, "
            "onnxruntime, onnxruntime_gather, multi_stream, cuda_graph. Eager is always there."
        ),
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="With --peers: empty the caches before every call.")
    ] = False,
    buckets: Annotated[
        str | None,
        typer.Option(help="Batch sizes to capture. [dim]Default: the suite's, or 1,16,128.[/]"),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(help="Batch sizes to measure. [dim]Default: the suite's, or the buckets.[/]"),
    ] = None,
    runs: Annotated[
        int, typer.Option(help="Pairs of eager and replay a batch size, or rounds of all.", min=2)
    ] = 400,
    device: options.Device = "cpu",
    strategy: options.Strategy = None,
    streams: options.Streams = 8,
    compiler: options.Compiler = None,
    rewrites: options.Rewrites = None,
    tune: options.Tune = "off",
    arg: options.FactoryArgs = None,
    inputs: options.ExampleFile = None,
    jagged: input_options.JaggedInputs = None,
    capacity: input_options.Capacity = None,
    user_inputs: input_options.UserInputs = None,
    users: input_options.Users = 1,
    row_mask: input_options.RowMaskInput = None,
    out: Annotated[Path | None, typer.Option(help="Write the report here too, as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --peers: draw the ratios, as .svg or .png.")
    ] = None,
    strict_mode: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure replay against eager and against peers: one run, one thread, in turns, checked."""
    from recreplay.tools.capture_model import read_example

    _check_peers(peers, cold, plot)
    check_output(out)
    check_output(plot)
    if suite in OWN_MODELS:
        given = {
            "models": targets,
            "--peers": peers,
            "--buckets": buckets,
            "--batches": batches,
            "--arg": arg,
            "--inputs": inputs,
            "--jagged": jagged,
            "--user-inputs": user_inputs,
            "--row-mask": row_mask,
        }
        _refuse(suite, [name for name, value in given.items() if value])
    if (jagged or user_inputs or row_mask) and (suite or not targets):
        raise RecReplayError(
            "--jagged, --user-inputs and --row-mask go with a model of your own, not a suite"
        )
    settings = {
        "device": device,
        "strategy": strategy,
        "streams": streams,
        "compiler": compiler,
        "rewrites": options.parse_rewrites(rewrites),
        "tune": tune,
        "jagged": input_options.parse_jagged(jagged or (), capacity or ()) or None,
        "user_inputs": input_options.parse_names(user_inputs),
        "users": users,
        "row_mask": row_mask,
    }
    example = None if inputs is None else read_example(inputs)
    alone = peers is None and suite is None
    if targets and alone and all(target.endswith(".onnx") for target in targets):
        files = choose(targets, suite, buckets, batches, arg or ())
        _bench_files(files, runs, settings, example, strict_mode, out, as_json)
        return
    with Progress() as progress:
        if suite == "scaling":
            from recreplay.tools.bench import scaling

            report = scaling.measure(scaling.SERIES, progress, settings)
        elif suite == "overhead":
            from recreplay.tools.bench import overhead

            report = overhead.measure(
                only(overhead.BENCHMARKS, models), runs, progress, settings, strict_mode
            )
        elif suite == "precision":
            from recreplay.tools.bench import precisions

            report = precisions.measure(
                only(precisions.BENCHMARKS, models), runs, progress, settings, strict_mode
            )
        elif suite == "cartesian":
            from recreplay.tools.bench import cartesian

            report = cartesian.measure(
                only(cartesian.BENCHMARKS, models), runs, progress, settings, strict_mode
            )
        elif peers is None:
            from recreplay.tools.bench import pairs

            chosen = only(choose(targets or (), suite, buckets, batches, arg or ()), models)
            report = pairs.measure(chosen, runs, progress, settings, example, strict_mode)
        else:
            from recreplay.tools.bench import against_peers

            chosen = only(choose(targets or (), suite, buckets, batches, arg or ()), models)
            names = [name.strip() for name in peers.split(",")]
            report = against_peers.measure(
                chosen, names, runs, cold, progress, settings, example, strict_mode
            )
    _tell_apart(report)
    if out is not None:
        write_json(out, report)
    if plot is not None:
        from recreplay.tools.bench.plot import draw

        draw(report, plot)
    if as_json:
        print_json(report)
        return
    show(*_render(report))
    _notice(report)


def _tell_apart(report: dict[str, Any]) -> None:
    """Factories of several files may have one name; tables, pictures and notices go by names."""
    count = Counter(result["name"] for result in report["results"])
    for result in report["results"]:
        if count[result["name"]] > 1 and "target" in result:
            result["name"] = result["target"]


def _notice(report: dict[str, Any]) -> None:
    for result in report["results"]:
        for notice in result["notices"]:
            report_notice(f"{result['name']}: {notice}")


def _bench_files(
    files: Sequence[Benchmark],
    runs: int,
    settings: dict[str, Any],
    example: dict[str, Tensor] | None,
    strict_mode: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """ONNX files are measured against ONNX Runtime, which is what replay would take the place
    of."""
    from recreplay.tools.bench import onnx_file

    first = files[0]
    paths = [benchmark.target for benchmark in files]
    with Progress() as progress:
        report = onnx_file.measure_files(
            paths, first.buckets, first.batches, runs, progress, settings, example, strict_mode
        )
    _tell_apart(report)
    if out is not None:
        write_json(out, report)
    if as_json:
        print_json(report)
        return
    show(*onnx_file.render(report))
    _notice(report)


def choose(
    targets: Sequence[str],
    suite: str | None,
    buckets: str | None,
    batches: str | None,
    arguments: Sequence[str] = (),
) -> list[Benchmark]:
    """What to measure: the named models, and the suite if one is named or nothing else is.

    An argument that is given takes the place of the suite's own.
    """
    sizes = None if buckets is None else tuple(options.parse_sizes(buckets, "--buckets"))
    measured = (
        None
        if batches is None
        else tuple(options.parse_numbers(batches, "--batches", "batch sizes", 1))
    )
    given = tuple(arguments)
    captured = sizes or DEFAULT_BUCKETS
    found = [Benchmark(t, given, captured, measured or captured) for t in targets]
    if suite is not None or not targets:
        named = {text.partition("=")[0] for text in given}
        found += [
            replace(
                b,
                arguments=(*(a for a in b.arguments if a.partition("=")[0] not in named), *given),
                buckets=sizes or b.buckets,
                batches=measured or sizes or b.batches,
            )
            for b in find_suite(suite or "foundation").benchmarks
        ]
    return found


def only(benchmarks: Iterable[Benchmark], models: str | None) -> list[Benchmark]:
    """Those of the models named `a,b`; all without names."""
    found = list(benchmarks)
    if models is None:
        return found
    wanted = [name.strip() for name in models.split(",")]
    there = [b.name for b in found]
    for name in wanted:
        if name not in there:
            raise RecReplayError(f"--models {name!r} is not measured; there is {', '.join(there)}")
    return [b for b in found if b.name in wanted]


def _refuse(suite: str, given: Sequence[str]) -> None:
    if given:
        raise RecReplayError(
            f"--suite {suite} measures models, sizes and peers of its own; leave out "
            f"{', '.join(given)}"
        )


def _check_peers(peers: str | None, cold: bool, plot: Path | None) -> None:
    if peers is None and (cold or plot is not None):
        raise RecReplayError(f"{'--cold' if cold else '--plot'} goes with --peers; add --peers all")
    if plot is not None:
        from recreplay.tools.bench.plot import check_plot

        check_plot(plot)  # before an hour of measuring


def _render(report: dict[str, Any]) -> Iterator[RenderableType]:
    from recreplay.tools.bench import cartesian, overhead, peer_report, precisions, scaling
    from recreplay.tools.bench import report as pairs_report

    renderers = {
        overhead.KIND: overhead.render,
        scaling.KIND: scaling.render,
        precisions.KIND: precisions.render,
        cartesian.KIND: cartesian.render,
        peer_report.KIND: peer_report.render,
        pairs_report.KIND: pairs_report.render,
    }
    return renderers[report["kind"]](report)
