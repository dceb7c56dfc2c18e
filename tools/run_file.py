"""`recreplay run`: one request from an .npz file, its scores into another."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from recreplay.tools import options, strict, tables
from recreplay.tools.console import Progress, print_json, report_notice, show
from recreplay.tools.files import read_npz, write_npz


def run(
    artifact: Annotated[Path, typer.Argument(help="An artifact that capture wrote.")],
    inputs: Annotated[Path, typer.Option(help="The request: an .npz with one array per input.")],
    out: Annotated[Path, typer.Option(help="The scores: an .npz with one array per output.")],
    check: Annotated[
        str, typer.Option(help="Ids outside of their table: error, clamp or off.")
    ] = "error",
    device: Annotated[
        str | None, typer.Option(help="Where to run. [dim]Default: the artifact's device.[/]")
    ] = None,
    strict_mode: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Replay one request of any number of rows."""
    from recreplay.runtime import Runtime

    request = read_npz(inputs)
    with Progress() as progress:
        progress(f"loading {artifact}")
        begun = time.perf_counter()
        # The runtime refuses a check that is none of its own.
        with Runtime.load(artifact, device=device, check=check) as runtime:  # type: ignore[arg-type]
            loaded = time.perf_counter()
            progress("replaying")
            scores = runtime.run(request)
            done = time.perf_counter()
            stats = runtime.stats()
            found = [*strict.remarks(runtime.manifest), *strict.request_remarks(stats)]
    if strict_mode:
        strict.refuse(found)
    write_npz(out, scores)
    report = {
        "artifact": str(artifact),
        "out": str(out),
        "rows": stats["rows"],
        "outputs": [
            {"name": k, "dtype": str(v.dtype), "shape": list(v.shape)} for k, v in scores.items()
        ],
        "load_seconds": round(loaded - begun, 3),
        "run_us": round((done - loaded) * 1e6, 1),
        "stats": stats,
        "notices": found,
    }
    if as_json:
        print_json(report)
        return
    _show(report)
    for notice in found:
        report_notice(notice)


def _show(report: dict[str, Any]) -> None:
    stats = report["stats"]
    replays = ", ".join(f"{count} x bucket {size}" for size, count in stats["replays"].items())
    shapes = ", ".join(
        f"{o['name']} {o['dtype']}[{', '.join(map(str, o['shape']))}]" for o in report["outputs"]
    )
    show(
        tables.pairs(
            f"{report['rows']} rows → {report['out']}",
            [
                ("outputs", shapes),
                ("replays", replays),
                ("padding", f"{stats['padded_rows']} rows"),
                ("clamped ids", stats["clamped_ids"]),
                ("load", f"{report['load_seconds']:.2f} s"),
                ("run", f"{tables.micros(report['run_us'])} µs, the first request of a process"),
            ],
        )
    )
