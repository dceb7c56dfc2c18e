"""`recreplay view` and `recreplay trace`: an artifact as a page, or as a trace for Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recreplay.tools.console import Progress, report_notice
from recreplay.tools.files import write_json, write_text

if TYPE_CHECKING:
    from recreplay.runtime.artifact import Artifact
    from recreplay.tools.view.measured import Measured

ArtifactPath = Annotated[Path, typer.Argument(help="An artifact that capture wrote.")]
Measure = Annotated[
    bool,
    typer.Option("--measure", help="Replay each bucket here and show measured times."),
]
Runs = Annotated[int, typer.Option(help="Replays of each bucket for --measure.", min=1)]


def view(
    artifact: ArtifactPath,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("page.html"),
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page on localhost, with live counters.")
    ] = False,
    port: Annotated[
        int, typer.Option(help="Port for --serve; 0 takes a free one.", min=0, max=65_535)
    ] = 8642,
    traffic: Annotated[
        float, typer.Option(help="With --serve: random requests a second to replay.", min=0)
    ] = 0.0,
    take_measures: Measure = False,
    runs: Runs = 200,
    bench: Annotated[
        list[Path] | None, typer.Option(help="A result file of `bench --out`; may be repeated.")
    ] = None,
) -> None:
    """Write one HTML page of an artifact: streams, operators, strategies, buckets, benchmarks."""
    from recreplay.runtime.artifact import open_artifact
    from recreplay.runtime.errors import RecReplayError
    from recreplay.tools.view.data import page_data, read_bench
    from recreplay.tools.view.page import render

    if traffic and not serve:
        raise RecReplayError("--traffic replays requests for a page that is served; add --serve")
    with Progress() as progress:
        progress(f"reading {artifact}")
        opened = open_artifact(artifact)
        benches = [read_bench(path) for path in bench or ()]
        measured = measure_if(take_measures, opened, None, runs, progress)
        data = page_data(opened, measured, benches)
    if any(item["graph"] is None for item in data["buckets"]):
        report_notice(
            f"{artifact} holds no operator graph (an older capture wrote it): the page shows "
            "segments only; capture the model again for the rest"
        )
    if not serve:
        write_text(out, render(data))
        typer.echo(out)
        return
    from recreplay.tools.view.serve import serve_page

    serve_page(opened, render(data, live=True), port, traffic)


def trace(
    artifact: ArtifactPath,
    bucket: Annotated[int, typer.Option(help="Which bucket.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSON file to write.")],
    take_measures: Measure = False,
    runs: Runs = 200,
) -> None:
    """Write a trace of one bucket that Perfetto and chrome://tracing open."""
    from recreplay.runtime.artifact import open_artifact
    from recreplay.runtime.errors import RecReplayError
    from recreplay.runtime.graph import read_graph
    from recreplay.tools.describe import describe, find_bucket
    from recreplay.tools.view.bucket import bucket_view
    from recreplay.tools.view.trace import chrome_trace

    opened = open_artifact(artifact)
    found = find_bucket(opened, bucket)
    with Progress() as progress:
        measured = measure_if(take_measures, opened, [bucket], runs, progress)
    graph = read_graph(opened.path).get(bucket)
    shown = bucket_view(found, opened.manifest, graph, measured.get(bucket))
    if not shown["timings"]:
        raise RecReplayError(
            f"{artifact} holds no operator graph to model times from; use --measure, or capture "
            "the model again"
        )
    summary = describe(opened.path, opened.manifest)
    write_json(out, chrome_trace(summary, shown, shown["timings"][0]))
    typer.echo(out)


def measure_if(
    wanted: bool, opened: Artifact, buckets: list[int] | None, runs: int, progress: Progress
) -> dict[int, Measured]:
    """Measured times by bucket, or none."""
    if not wanted:
        return {}
    from recreplay.tools.view.measured import measure

    return measure(opened, buckets, runs, progress)
