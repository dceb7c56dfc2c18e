"""`bench --suite scaling`: what capture takes against features and against buckets.

Models are StreamRec-style: every feature has a table, attention pooling and an interaction layer of
its own. Time is split where capture says what it does next. Buckets are added below the same
largest one, so that what grows is their number.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import RenderableType

from recreplay.tools import tables
from recreplay.tools.bench.empty_cache import empty_cache
from recreplay.tools.bench.report import machine
from recreplay.tools.console import Progress
from recreplay.tools.files import folder_size, temporary_folder

if TYPE_CHECKING:
    from pathlib import Path

KIND = "recreplay-bench-scaling"
ROWS = 1000  # of each table: weights are not what is measured
NEAR_LINEAR = 1.2  # the largest exponent that is called so
TOTALS = ("total_seconds", "artifact_bytes", "lane_bytes")
FEATURES = 8  # where buckets grow
LARGEST = 192  # rows; of as many buckets as there are, evenly spaced


@dataclass(frozen=True, slots=True)
class Series:
    """One thing that grows: `features` of a model with two buckets, or `buckets` of one model."""

    grows: str
    compiler: str
    values: tuple[int, ...]

    def capture(self, value: int) -> tuple[int, tuple[int, ...]]:
        """Features and buckets of one point."""
        if self.grows == "features":
            return value, (1, 16)
        return FEATURES, tuple(LARGEST * (i + 1) // value for i in range(value))


SERIES = (
    Series("features", "eager", (8, 25, 50, 100, 200, 400)),
    Series("features", "inductor", (8, 16, 32, 64)),
    Series("buckets", "eager", (1, 2, 4, 8, 16)),
    Series("buckets", "inductor", (1, 2, 4, 8, 16)),
)


def measure(
    series: Sequence[Series], progress: Progress, settings: dict[str, Any]
) -> dict[str, Any]:
    """The report: the points of each series, and exponents fitted to them."""
    from recreplay.tools.bench.stamp import stamp

    report: dict[str, Any] = {"kind": KIND, "stamp": stamp(threads=1), "results": []}
    for one in series:
        points = []
        for value in one.values:
            progress(f"{one.compiler}: {value} {one.grows}")
            points.append({"value": value, **_point(one, value, settings)})
            gc.collect()
        names = [name for name in points[0] if name.endswith(("seconds", "bytes"))]
        powers = {name: exponent(one.values, [p[name] for p in points]) for name in names}
        report["results"].append(
            {
                "name": f"{one.grows}, {one.compiler}",
                "grows": one.grows,
                "compiler": one.compiler,
                "points": points,
                "exponents": powers,
                "near_linear": all((powers[name] or 0.0) <= NEAR_LINEAR for name in TOTALS),
                "notices": [],
            }
        )
    return report


def exponent(values: Sequence[float], measured: Sequence[float]) -> float | None:
    """The power of `values` that `measured` grows with, by least squares of the logarithms.

    1 is linear; below it, what is there at any size still counts. None where fewer than two points
    took any time.
    """
    pairs = [(v, m) for v, m in zip(values, measured, strict=True) if m > 0]
    if len(pairs) < 2:
        return None
    x, y = np.log(np.asarray(pairs, dtype=np.float64)).T
    return round(float(np.polyfit(x, y, 1)[0]), 2)


def _point(series: Series, value: int, settings: dict[str, Any]) -> dict[str, Any]:
    from recreplay.capture import capture
    from recreplay.models import streamrec
    from recreplay.runtime.artifact import WEIGHTS, open_artifact
    from recreplay.runtime.loading import LaneLoader

    features, buckets = series.capture(value)
    model = streamrec(features=features, rows=ROWS)
    with temporary_folder() as folder:
        path: Path = folder / "scaling.rr"
        options = {**settings, "compiler": series.compiler}
        with empty_cache():
            stages = Stages()
            manifest = capture(model, out=path, buckets=buckets, progress=stages, **options)
            total = stages.end()
        lane = LaneLoader(open_artifact(path), settings["device"], "error").lane()
        memory = lane.nbytes
        lane.close()
        weights = (path / WEIGHTS).stat().st_size
        return {
            "total_seconds": round(total, 3),
            **stages.seconds(),
            "artifact_bytes": folder_size(path) - weights,
            "lane_bytes": memory,
            "packages": len(manifest.packages),
        }


class Stages:
    """Listens to what capture says, and keeps when it went from one stage to the next."""

    def __init__(self) -> None:
        self._at = {"begun": time.perf_counter()}

    def __call__(self, message: str) -> None:
        now = time.perf_counter()
        if message.startswith("bucket "):
            self._at.setdefault("first", now)
            self._at["planned"] = now
        elif message == "writing weights":
            self._at["compiled"] = now
        elif message == "recording and verifying":
            self._at["recording"] = now

    def end(self) -> float:
        """Seconds of the whole capture, which has just ended."""
        self._at["ended"] = time.perf_counter()
        return self._at["ended"] - self._at["begun"]

    def seconds(self) -> dict[str, float]:
        """Of each stage: exporting and planning the first bucket, planning the others, compiling,
        recording and verifying."""
        stages = {
            "export": ("begun", "first"),
            "plan": ("first", "planned"),
            "compile": ("planned", "compiled"),
            "verify": ("recording", "ended"),
        }
        return {
            f"{name}_seconds": round(self._at[end] - self._at[start], 3)
            for name, (start, end) in stages.items()
        }


def render(report: dict[str, Any]) -> Iterator[RenderableType]:
    """A table a series; its last line is the exponents."""
    columns = ("total>", "export>", "plan>", "compile>", "verify>", "artifact>", "lane>")
    names = [f"{c.removesuffix('>')}_seconds" for c in columns[:5]]
    for result in report["results"]:
        rows = [
            (
                point["value"],
                *(f"{point[name]:.2f}" for name in names),
                tables.size(point["artifact_bytes"]),
                tables.size(point["lane_bytes"]),
                point["packages"],
            )
            for point in result["points"]
        ]
        powers = [result["exponents"][n] for n in (*names, "artifact_bytes", "lane_bytes")]
        rows.append(("exponent", *("-" if p is None else f"{p:.2f}" for p in powers), ""))
        title = f"Capture against {result['grows']} ({result['compiler']})"
        yield tables.table(title, (f"{result['grows']}>", *columns, "packages>"), rows)
        verdict = "is" if result["near_linear"] else "is NOT"
        yield f"  Growth {verdict} near-linear: exponents of totals up to {NEAR_LINEAR}.\n"
    yield (
        "Seconds. Exponent: the power that a column grows with, fitted to the logarithms; 1 is "
        "linear, less is slower than that. Export: with the plan of the first bucket; plan: of the "
        "others. Artifact without weights; lane: staging and buffers.\n"
        f"{machine(report['stamp'])}"
    )
