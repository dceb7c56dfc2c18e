"""Replays of a CUDA graph under torch's profiler: when each segment and each kernel ran."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from recreplay.tools.view.graph_marks import Marks
from recreplay.tools.view.kernels import kernels_of_launches, span
from recreplay.tools.view.measured import WARM_UP, Drive, Measured, percentiles

_TRACED = 50  # replays under the profiler, whose events are large


def profiled(drive: Drive, marks: Marks, runs: int) -> Callable[[], Measured]:
    """`runs` replays that nobody watches now, and up to 50 under the profiler afterwards.

    Segment times are from the start of the segment's first kernel to the end of its last; starts
    count from the first node of the graph, the copy of the inputs.
    """
    whole = []
    for turn in range(-min(WARM_UP, runs), runs):
        drive.fill()
        took = drive.replay()
        if turn >= 0:
            whole.append(took)
    return partial(_profiled, drive, marks, runs, percentiles(whole))


def _profiled(drive: Drive, marks: Marks, runs: int, whole: dict[str, float]) -> Measured:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(min(runs, _TRACED)):
            drive.fill()
            drive.replay()
    with tempfile.TemporaryDirectory(prefix="recreplay-trace-") as folder:
        written = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(written))
        events = json.loads(written.read_text())["traceEvents"]
    launches = kernels_of_launches(events, marks)
    starts, durations = [], []
    latest = 0.0
    for kernels in launches[1:-1]:  # the first launch uploads and the last downloads
        start, end = span(kernels, latest)
        starts.append(round(start, 3))
        durations.append(round(end - start, 3))
        latest = end
    return Measured(runs, tuple(durations), whole, tuple(starts), launches[1:-1])
