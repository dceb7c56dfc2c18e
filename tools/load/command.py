"""`recreplay loadgen`: open-loop load on an artifact, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recreplay.tools import options, tables
from recreplay.tools.console import Progress, print_json, show
from recreplay.tools.interpreter import prepare_for_load


def loadgen(
    artifact: Annotated[Path, typer.Argument(help="An artifact that capture wrote.")],
    rate: Annotated[float, typer.Option(help="Queries a second.", min=0.001)] = 100.0,
    seconds: Annotated[float, typer.Option(help="How long they arrive.", min=0.01)] = 10.0,
    sizes: Annotated[
        str,
        typer.Option(
            help="Items of a query: fixed:N, normal:165,16, lognormal:5.1,0.2, kairos, file:PATH."
        ),
    ] = "lognormal:5.1,0.2",
    arrivals: Annotated[
        str, typer.Option(help="Gaps: exponential, or poisson as DeepRecSys draws them.")
    ] = "exponential",
    serving: Annotated[
        Path | None, typer.Option(help="A serving.json. [dim]Default: one lane, no batching.[/]")
    ] = None,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Send queries when they are due, and say how long each took from then."""
    from recreplay.runtime import Runtime, Serving
    from recreplay.tools.load.arrivals import arrival_times, check_arrivals, check_rate
    from recreplay.tools.load.generator import run_load
    from recreplay.tools.load.queries import Queries
    from recreplay.tools.load.sizes import parse_sizes

    check_rate(rate, seconds)
    prepare_for_load()
    kind, drawn = check_arrivals(arrivals), parse_sizes(sizes)
    chosen = Serving() if serving is None else Serving.read(serving)
    with Progress() as progress:
        progress(f"loading {artifact}")
        with Runtime.load(artifact, serving=chosen) as runtime:
            times = arrival_times(kind, rate, seconds, seed)
            queries = Queries(runtime.path, runtime.manifest, drawn, seed)
            requests = [queries.next() for _ in times]
            progress(f"{len(times)} queries over {seconds:g} s")
            load = run_load(runtime, requests, times)
            stats = runtime.stats()
    report: dict[str, Any] = {
        "artifact": str(artifact),
        "rate": rate,
        "sizes": sizes,
        "arrivals": arrivals,
        "serving": chosen.to_json(),
        **load.to_json(),
        "stats": stats,
    }
    if as_json:
        print_json(report)
        return
    latency = ", ".join(f"{k} {v:.2f}" for k, v in load.latency_ms.items())
    show(
        tables.pairs(
            f"{load.offered} queries at {rate:g} a second",
            [
                ("answered", f"{load.answered}, {load.qps:.1f} a second"),
                ("refused, expired, failed", f"{load.refused}, {load.expired}, {load.failed}"),
                ("latency from due, ms", latency or "none"),
                ("sent late, ms", f"p99 {load.late_ms:.2f}"),
            ],
        )
    )
