"""What `recreplay bench` says: one table a model, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType

from recreplay.tools import tables

KIND = "recreplay-bench"


def render(report: dict[str, Any]) -> Iterator[RenderableType]:
    """Tables of a report that `recreplay.tools.bench.pairs` made."""
    for result in report["results"]:
        yield tables.table(
            f"{_title(result)}: captured in {result['capture_seconds']:.1f} s "
            f"({result['compiler']}, {result['strategy']})",
            (
                "batch>",
                "bucket>",
                "eager p50>",
                "p99>",
                "replay p50>",
                "p99>",
                "speed-up>",
                "middle half>",
                "host>",
            ),
            [_row(item) for item in result["batches"]],
        )
    yield (
        f"Microseconds; {report['stamp']['threads']} thread; {report['runs']} pairs, alternating, "
        f"over {report['requests']} requests. Speed-up: ratio of the medians, and the middle half "
        "of the pairs' ratios. Host: what Runtime.run adds to the replay inside of it, median.\n"
        f"{machine(report['stamp'])}"
    )


def machine(stamp: dict[str, Any]) -> str:
    """Where a report was made."""
    return (
        f"{stamp['cpu']} ({stamp['cpu_capability']}), torch {stamp['torch']}, "
        f"load {stamp['load_average']}, commit {_short(stamp['commit'])}"
    )


def _title(result: dict[str, Any]) -> str:
    arguments = ", ".join(f"{k}={v!r}" for k, v in result["arguments"].items())
    return f"{result['name']}({arguments})"


def _short(commit: str | None) -> str:
    if commit is None:
        return "unknown"
    digest, plus, changes = commit.partition("+")
    return f"{digest[:12]}{plus}{changes}"


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    eager, replay, host = item["eager_us"], item["replay_us"], item["host"]
    return (
        str(item["batch"]),
        str(item["bucket"]),
        tables.micros(eager["p50"]),
        tables.micros(eager["p99"]),
        tables.micros(replay["p50"]),
        tables.micros(replay["p99"]),
        tables.times(item["speedup"]),
        f"{item['speedup_p25']:.2f}-{item['speedup_p75']:.2f}",
        tables.micros(None if host is None else host["overhead_us"]["p50"]),
    )
