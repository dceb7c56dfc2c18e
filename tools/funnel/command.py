"""`recreplay funnel`: models in a row, quality against latency."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from recreplay.runtime.errors import RecReplayError
from recreplay.tools import options, tables
from recreplay.tools.console import Progress, print_json, report_notice, show
from recreplay.tools.files import check_output, write_json
from recreplay.tools.interpreter import prepare_for_load
from recreplay.tools.load.arrivals import check_rate
from recreplay.tools.query_sizes import MOST

KIND = "recreplay-funnel"


def funnel(
    artifacts: Annotated[
        list[Path], typer.Argument(help="Artifacts, the lightest model first. The last ranks last.")
    ],
    keep: Annotated[str, typer.Option(help="Rows that a stage may let through.")] = "128,512,1024",
    items: Annotated[int, typer.Option(help="Candidates of a query.", min=2, max=MOST)] = 4096,
    top: Annotated[int, typer.Option(help="Rows that are asked for, best first.", min=1)] = 64,
    inputs: Annotated[
        Path | None,
        typer.Option(help="Rows of queries as .npz. [dim]Default: queries are drawn at random.[/]"),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The array of that file that says which rows are right. [dim]Default: those that "
            "the last model alone ranks first.[/]"
        ),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=OUTPUT", help="What ranks, of a model with several outputs."),
    ] = None,
    loss: Annotated[
        float,
        typer.Option(help="The share of the last model's NDCG that may be lost.", min=0, max=1),
    ] = 0.001,
    queries: Annotated[int, typer.Option(help="The most queries.", min=1)] = 64,
    runs: Annotated[int, typer.Option(help="Rounds of all funnels.", min=2)] = 200,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Also under an open-loop load of so many queries a second.", min=0.001),
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long they arrive.", min=0.01)] = 10.0,
    lanes: Annotated[int, typer.Option(help="Lanes of each model.", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the report here too, as JSON.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Rank queries by every funnel of these models, and say how good and how fast each is."""
    from recreplay.runtime import Funnel, Runtime, Stage
    from recreplay.tools.bench.stamp import stamp
    from recreplay.tools.funnel import measure
    from recreplay.tools.funnel import queries as made
    from recreplay.tools.funnel.pipelines import pipelines
    from recreplay.tools.quiet import quiet

    kept = options.parse_numbers(keep, "--keep", "numbers of rows", 1, MOST)
    if labels is not None and inputs is None:
        raise RecReplayError("--labels names an array of --inputs; give that, too")
    if top > items:
        raise RecReplayError(f"--top {top} is above --items {items}")
    for each in rate or []:
        check_rate(each, seconds)
    names = _names(artifacts)
    scores = _scores(score or [], names)
    chosen = pipelines(len(artifacts), items, kept, top)
    check_output(out)
    prepare_for_load()
    with Progress() as progress, ExitStack() as stack:
        progress(f"loading {len(artifacts)} artifacts")
        runtimes = [stack.enter_context(Runtime.load(path, lanes=lanes)) for path in artifacts]
        models = [
            Stage(runtime, items, scores.get(name))
            for runtime, name in zip(runtimes, names, strict=True)
        ]
        _check_whole(chosen, items, runtimes, names)
        for notice in [*_unused(kept, items, top), *_padded(chosen, runtimes, names)]:
            report_notice(notice)
        whole = Funnel(models)
        if inputs is None:
            asked = made.at_random(whole, items, queries, 0)
        else:
            asked = made.from_file(inputs, whole, items, queries, labels)
        with quiet():
            found = measure.measure(chosen, models, asked, top, runs, progress)
        for item in found:
            for each in rate or []:
                progress(f"{item.pipeline.describe(names)}: {each:g} queries a second")
                item.loads.append(measure.load(item, asked, each, seconds, 0))
                for notice in _unanswered(item.pipeline.describe(names), item.loads[-1]):
                    report_notice(notice)
    report = {
        "kind": KIND,
        "artifacts": [path.name for path in artifacts],
        "items": items,
        "top": top,
        "queries": len(asked),
        "labels": labels,
        "runs": runs,
        "lanes": lanes,
        "loss": loss,
        "chosen": measure.fastest(found, loss).pipeline.describe(names),
        "funnels": [
            _result(item, found[0], best, names)
            for item, best in zip(found, measure.frontier(found), strict=True)
        ],
        "stamp": stamp(threads=1),
    }
    if out is not None:
        write_json(out, report)
    if as_json:
        print_json(report)
        return
    _show(report)


def _names(artifacts: list[Path]) -> list[str]:
    """Each by its own name, or by its path where several have that."""
    stems = [path.stem for path in artifacts]
    if len(set(stems)) == len({*artifacts}):
        return stems
    return [str(path) for path in artifacts]


def _unused(kept: list[int], items: int, top: int) -> list[str]:
    """Which numbers of rows no funnel has."""
    unused = [str(keep) for keep in kept if not top <= keep < items]
    if not unused:
        return []
    return [
        f"--keep {', '.join(unused)} is left out: a stage lets {top} rows (--top) or more through, "
        f"and fewer than {items} (--items)"
    ]


def _unanswered(name: str, load: dict[str, Any]) -> list[str]:
    """Of what no latency tells."""
    missing = load["offered"] - load["answered"]
    if not missing:
        return []
    return [
        f"{name} at {load['rate']:g}/s: {missing} of {load['offered']} queries were not answered "
        "and are not in its latency"
    ]


def _check_whole(chosen: list[Any], items: int, runtimes: list[Any], names: list[str]) -> None:
    """Raise RecReplayError where a stage would have to cut what it cannot."""
    for pipeline in chosen:
        for at, rows in zip(pipeline.stages, (items, *pipeline.keeps), strict=True):
            manifest = runtimes[at].manifest
            most = manifest.buckets[-1].size
            if manifest.row_mask is not None and rows > most:
                raise RecReplayError(
                    f"{names[at]} would rank {rows} rows in the funnel "
                    f"{pipeline.describe(names)}; its largest bucket holds {most}, and requests of "
                    "a model that compares rows cannot be cut; ask for fewer (--items, --keep), or "
                    "capture it with a larger bucket"
                )


def _padded(chosen: list[Any], runtimes: list[Any], names: list[str]) -> list[str]:
    """What stages would better have been captured for."""
    asked = {
        (at, keep)
        for pipeline in chosen
        for at, keep in zip(pipeline.stages[1:], pipeline.keeps, strict=True)
    }
    notices = []
    for at, keep in sorted(asked):
        sizes = [bucket.size for bucket in runtimes[at].manifest.buckets]
        larger = next((size for size in sizes if size >= keep), None)
        if larger is not None and larger > keep:
            notices.append(
                f"{names[at]} has no bucket of {keep} rows: a replay pads them to {larger}"
            )
    return notices


def _scores(texts: list[str], names: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, output = text.partition("=")
        if not equals or name not in names:
            raise RecReplayError(
                f"--score {text!r}: expected MODEL=OUTPUT, where models are {', '.join(names)}"
            )
        found[name] = output
    return found


def _result(item: Any, alone: Any, best: bool, names: list[str]) -> dict[str, Any]:
    latency = item.latency()
    return {
        "stages": [names[at] for at in item.pipeline.stages],
        "keep": list(item.pipeline.keeps),
        "name": item.pipeline.describe(names),
        "ndcg": round(item.ndcg, 5),
        "overlap": round(item.overlap, 5),
        "latency_us": latency.to_json(),
        "speedup": round(alone.latency().p50 / latency.p50, 3),
        "on_frontier": best,
        "loads": item.loads,
    }


def _show(report: dict[str, Any]) -> None:
    top, rates = report["top"], [load["rate"] for load in report["funnels"][0]["loads"]]
    rows = []
    for item in sorted(report["funnels"], key=lambda item: item["latency_us"]["p95"]):
        latency = item["latency_us"]
        rows.append(
            (
                item["name"],
                "*" if item["on_frontier"] else "",
                f"{100 * item['ndcg']:.2f} %",
                f"{100 * item['overlap']:.1f} %",
                *(f"{latency[p] / 1e3:.2f}" for p in ("p50", "p95", "p99")),
                tables.times(item["speedup"]),
                *(f"{load['latency_ms'].get('p95', float('nan')):.1f}" for load in item["loads"]),
            )
        )
    right = f"by label {report['labels']!r}" if report["labels"] else "by the last model alone"
    show(
        tables.table(
            f"{report['items']} candidates, {top} asked for, {report['queries']} queries",
            (
                *("funnel", "", f"NDCG@{top}>", "kept>"),
                *("p50>", "p95>", "p99>", "speed-up>"),
                *(f"at {rate:g}/s>" for rate in rates),
            ),
            rows,
        ),
        f"Fastest by p95, at most {100 * report['loss']:g} % of NDCG lost: {report['chosen']}.",
        "Each model with the rows that it lets through; milliseconds, by p95. At n/s: p95 under "
        f"that load. NDCG {right}; kept: the share of the {top} rows that the last model alone "
        "ranks first. *: none is faster and as good. Speed-up: ratio of the medians to the last "
        "model alone.",
    )
