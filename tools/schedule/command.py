"""`recreplay schedule`: find how to serve an artifact within a tail latency; write serving.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recreplay.runtime.errors import RecReplayError
from recreplay.tools import options, tables
from recreplay.tools.console import Progress, print_json, report_notice, show
from recreplay.tools.files import check_output, write_json
from recreplay.tools.interpreter import prepare_for_load


def schedule(
    artifact: Annotated[Path, typer.Argument(help="An artifact that capture wrote.")],
    out: Annotated[Path, typer.Option(help="The serving.json to write.")] = Path("serving.json"),
    target_ms: Annotated[
        float | None,
        typer.Option(
            help="p95 of whole queries, in milliseconds. [dim]Default: of the reference model that "
            "the artifact is named after.[/]"
        ),
    ] = None,
    sizes: Annotated[
        str,
        typer.Option(
            help="Items of a query: fixed:N, normal:165,16, lognormal:5.1,0.2, kairos, file:PATH."
        ),
    ] = "lognormal:5.1,0.2",
    arrivals: Annotated[str, typer.Option(help="Gaps: exponential or poisson.")] = "exponential",
    cores: Annotated[int, typer.Option(help="Cores to plan for.", min=1)] = 2,
    delays: Annotated[
        str, typer.Option(help="Batching delays to try, in microseconds.")
    ] = "0,500,2000",
    accelerator: Annotated[
        Path | None,
        typer.Option(help='A latency table {"rows": [...], "median_ms": {"1": [...]}}: simulated.'),
    ] = None,
    windows: Annotated[
        int,
        typer.Option(
            help="Windows of 64 queries to measure a setting for; 0 only simulates.", min=0
        ),
    ] = 40,
    seconds: Annotated[
        float, typer.Option(help="The most seconds for one setting.", min=0.01)
    ] = 30.0,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Search chunk, lanes, batching delay and accelerator threshold, as DeepRecSched does."""
    try:
        from recreplay.tools.schedule.search import Search, Workload, report
    except ImportError as error:
        if error.name != "simpy":
            raise
        raise RecReplayError(
            f"the simulator needs simpy ({error}); pip install 'recreplay[schedule]'"
        ) from error
    from recreplay.tools.bench.stamp import stamp
    from recreplay.tools.load.arrivals import check_arrivals
    from recreplay.tools.load.sizes import parse_sizes
    from recreplay.tools.schedule.latency_table import LatencyTable
    from recreplay.tools.schedule.targets import target_for

    check_output(out)
    prepare_for_load()
    workload = Workload(
        parse_sizes(sizes), check_arrivals(arrivals), target_for(artifact.stem, target_ms), seed
    )
    tried = options.parse_numbers(delays, "--delays", "batching delays in microseconds", 0)
    table = None if accelerator is None else LatencyTable.read(accelerator)
    with Progress() as progress:
        search = Search(artifact, workload, cores, tried, table, progress)
        chosen = search.climb()
        if windows:
            for setting in search.candidates():
                search.execute(setting, windows, seconds)
        for notice in search.notices:
            report_notice(notice)
        chosen = search.choose(chosen)
    serving = chosen.serving(workload.target_ms, search.mean_ms())
    result = {
        "artifact": artifact.name,
        "sizes": sizes,
        "arrivals": arrivals,
        "cores": cores,
        **report(search, workload, chosen),
        "stamp": stamp(threads=1),
    }
    write_json(out, {**serving.to_json(), "report": result})
    if as_json:
        print_json({**serving.to_json(), "report": result})
        return
    _show(result, out)


def _show(result: dict[str, Any], out: Path) -> None:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.1f}"

    rows = [
        (
            s["lanes"],
            s["chunk_rows"] or "whole",
            "-" if s["max_delay_us"] is None else s["max_delay_us"],
            s["threshold"] or "-",
            number(s["simulated_qps"]),
            number(s["measured_qps"]),
            "-" if s["simulator_error_percent"] is None else f"{s['simulator_error_percent']} %",
        )
        for s in result["settings"]
    ]
    title = f"{result['artifact']}: p95 within {result['target_ms_p95']:g} ms"
    columns = ("lanes>", "chunk>", "delay µs>", "accelerator>", "simulated q/s>", "measured q/s>")
    show(tables.table(title, (*columns, "error>"), rows))
    chosen = result["chosen"]
    speedup = result["speedup"]
    words = "" if speedup is None else f", {tables.times(speedup)} of the static baseline"
    show(f"chosen: {chosen}{words}; written to {out}")
