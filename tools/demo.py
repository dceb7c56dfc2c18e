"""`recreplay demo`: capture an industry ranking model, replay mixed batch sizes, show the gain."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from recreplay.tools import options, strict, tables
from recreplay.tools.console import Progress, print_json, report_error, report_notice, show
from recreplay.tools.files import temporary_folder
from recreplay.tools.traffic import mixed_sizes, parts, replay_mixed

TARGET = "recreplay.models:dlrm_rmc1"

NEXT = """\
What to try next
  recreplay capture my_model.py:build --buckets 2,16,128 --out my.rr    your own model
  recreplay inspect my.rr --bucket 16                                   what was captured
  recreplay bench my_model.py:build                                     your model against eager
  recreplay demo --out dlrm.rr                                          keep this artifact
  recreplay doctor                                                      what this machine can do"""


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Keep the artifact here. [dim]Default: a temporary folder.[/]"),
    ] = None,
    rows_scale: Annotated[
        float, typer.Option(help="Shrinks the tables of 4,000,000 rows, to fit any machine.")
    ] = 0.01,
    buckets: Annotated[str, typer.Option(help="Batch sizes to capture.")] = "1,16,64,128",
    compiler: options.Compiler = None,
    runs: Annotated[int, typer.Option(help="Pairs of eager and replay a bucket.", min=2)] = 300,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Capture DLRM-RMC1, replay mixed batch sizes, check them against eager, show the speed-up.

    Takes up to 3 minutes on 2 CPU cores, and needs no GPU.
    """
    sizes = sorted(set(options.parse_sizes(buckets, "--buckets")))
    with _place(out) as path, Progress() as progress:
        report = _demonstrate(path, sizes, rows_scale, compiler, runs, overwrite, progress, out)
    if as_json:
        print_json(report)
        return
    show(*_render(report))
    for notice in report["notices"]:
        report_notice(notice)
    if out is not None:
        show(f"The artifact is kept in {out}.")
    show(NEXT)


@contextlib.contextmanager
def _place(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with temporary_folder() as folder:
        yield folder / "dlrm_rmc1.rr"


def _demonstrate(
    path: Path,
    sizes: Sequence[int],
    rows_scale: float,
    compiler: str | None,
    runs: int,
    overwrite: bool,
    progress: Progress,
    keep: Path | None,
) -> dict[str, Any]:
    from recreplay.tools.bench.compare import Session
    from recreplay.tools.capture_model import capture_target
    from recreplay.tools.target import load_target

    begun = time.perf_counter()
    progress(f"building DLRM-RMC1 with its tables scaled by {rows_scale:g}")
    target = load_target(TARGET, [f"rows_scale={rows_scale!r}"])
    manifest = capture_target(target, path, sizes, progress, compiler=compiler, overwrite=overwrite)
    try:
        with Session(target, path) as session:
            progress("replaying mixed batch sizes and checking them against eager")
            traffic = replay_mixed(session, mixed_sizes(sizes))
            compared = []
            for size in sizes:
                progress(f"bucket {size}: {runs} pairs of eager and replay")
                compared.append(session.compare(size, runs))
    except KeyboardInterrupt:
        if keep is None:
            raise
        report_error(f"interrupted; the artifact in {keep} is complete", prefix="")
        raise typer.Exit(130) from None
    by_bucket = []
    for item in compared:
        mine = [p for n in traffic.rows for p in parts(n, sizes) if p.bucket == item.bucket]
        by_bucket.append(
            {
                **item.to_json(),
                "traffic_replays": len(mine),
                "traffic_padded_rows": sum(p.bucket - p.rows for p in mine),
            }
        )
    return {
        "kind": "recreplay-demo",
        "model": manifest.model,
        "target": TARGET,
        "rows_scale": rows_scale,
        "table_bytes": sum(
            p.numel() * p.element_size() for n, p in _parameters(target.model) if "embed" in n
        ),
        "compiler": manifest.compiler,
        "strategy": manifest.strategy,
        "capture_seconds": manifest.capture_seconds,
        "notices": strict.remarks(manifest),
        "traffic": traffic.to_json(),
        "buckets": by_bucket,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _parameters(model: Any) -> Iterator[tuple[str, Any]]:
    yield from model.named_parameters()


def _render(report: dict[str, Any]) -> Iterator[Any]:
    traffic = report["traffic"]
    yield (
        f"DLRM-RMC1, 8 tables x 80 lookups, tables of {tables.size(report['table_bytes'])} "
        f"(rows_scale {report['rows_scale']:g}): captured in {report['capture_seconds']:.1f} s "
        f"({report['compiler']}, {report['strategy']})"
    )
    yield (
        f"{traffic['requests']} requests of 1 to {traffic['largest']} rows equal the eager model "
        f"(largest difference {traffic['max_abs_error']:.1e}); {traffic['split_requests']} were "
        f"larger than the largest bucket and split"
    )
    yield tables.table(
        "Eager against replay, one thread, microseconds",
        (
            "bucket>",
            "eager p50>",
            "p99>",
            "replay p50>",
            "p99>",
            "speed-up>",
            "replays>",
            "padding>",
        ),
        [
            (
                item["bucket"],
                tables.micros(item["eager_us"]["p50"]),
                tables.micros(item["eager_us"]["p99"]),
                tables.micros(item["replay_us"]["p50"]),
                tables.micros(item["replay_us"]["p99"]),
                tables.times(item["speedup"]),
                item["traffic_replays"],
                tables.share(item["traffic_padded_rows"], item["traffic_replays"] * item["bucket"]),
            )
            for item in report["buckets"]
        ],
    )
    yield (
        f"Padding is the share of rows that the mixed requests did not fill: "
        f"{tables.share(traffic['padded_rows'], traffic['rows'] + traffic['padded_rows'])} of all. "
        f"The demo took {report['seconds']:.0f} s.\n"
    )
