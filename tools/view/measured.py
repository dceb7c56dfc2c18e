"""How long each segment of an artifact takes here.

On the CPU every bound launch is timed. On CUDA a profiler watches replays and says when each kernel
ran. Replays run on different random requests, since one request again and again would find its
rows in the cache. Whole replays are timed apart, so that what the clock costs is not in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.tools.view.kernels import Kernel

if TYPE_CHECKING:
    from recreplay.runtime.artifact import Artifact
    from recreplay.runtime.devices.base import Device
    from recreplay.runtime.lane import Lane

REQUESTS = 17
WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """Microseconds: of each segment, and percentiles of whole replays.

    On the CPU segments are medians; on CUDA they are those of the replay of median length.
    """

    runs: int
    segments_us: tuple[float, ...]
    replay_us: dict[str, float]
    starts_us: tuple[float, ...] | None = None  # on CUDA: from the start of the first copy
    kernels: tuple[tuple[Kernel, ...], ...] = ()  # on CUDA: of each segment


def measure(
    artifact: Artifact,
    buckets: list[int] | None = None,
    runs: int = 200,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[int, Measured]:
    """Time `runs` full replays of each bucket, largest first; a result for each size.

    Raises:
        EnvironmentMismatchError: the artifact is for another device than this machine has.
        RecReplayError: the profiler did not see what was replayed (CUDA).
    """
    from recreplay.tools.quiet import quiet

    sizes = sorted((b.size for b in artifact.manifest.buckets), reverse=True)
    watch = _watch_cpu if artifact.manifest.device == "cpu" else _watch_cuda
    ended = {}
    with watch(artifact, runs) as (lane, times):
        for size, timed in zip(sizes, times, strict=True):
            if buckets is None or size in buckets:
                progress(f"bucket {size}: {runs} replays, segment by segment")
                with quiet():
                    ended[size] = timed(Drive(artifact, lane, size))
        with quiet():
            return {size: end() for size, end in ended.items()}


class Drive:
    """Full replays of one bucket, each with another request."""

    def __init__(self, artifact: Artifact, lane: Lane, size: int) -> None:
        from recreplay.runtime.mixed import make_checker
        from recreplay.tools.view.samples import sample_requests

        checker = make_checker(artifact.manifest, "off")
        requests = sample_requests(artifact, size, REQUESTS)
        self._arrays = [checker.check(request)[0] for request in requests]
        self._prepared = lane.prepare_in(size, size)
        self._turn = 0
        self.fill()
        self.replay()  # which writes the row mask, where there is one

    def fill(self) -> None:
        self._prepared.fill(self._arrays[self._turn % REQUESTS])
        self._turn += 1

    def replay(self) -> float:
        """Microseconds of one whole replay of what was filled in."""
        begun = time.perf_counter_ns()
        self._prepared.replay()
        return (time.perf_counter_ns() - begun) / 1e3


def percentiles(times_us: list[float]) -> dict[str, float]:
    marks = np.percentile(np.asarray(times_us, dtype=np.float64), [50, 90, 95, 99])
    named = zip(("p50", "p90", "p95", "p99"), marks, strict=True)
    return {name: round(float(value), 3) for name, value in named}


def _timed(drive: Drive, calls: Any, runs: int) -> Callable[[], Measured]:
    """On the CPU, where all calls are segments: each between two readings of the clock."""
    clock = time.perf_counter_ns
    stamps = np.zeros((runs, len(calls) + 1), dtype=np.int64)
    whole = []
    for turn in range(-min(WARM_UP, runs), runs):
        drive.fill()
        row = [clock()]
        for call in calls:
            call()
            row.append(clock())
        drive.fill()
        took = drive.replay()
        if turn >= 0:
            stamps[turn] = row
            whole.append(took)
    medians = np.median(np.diff(stamps, axis=1), axis=0) / 1e3
    found = Measured(runs, tuple(round(float(m), 3) for m in medians), percentiles(whole))
    return lambda: found


# A lane, and for each of its buckets, largest first, what times its replays. What that gives is
# called when all are timed: a profiler may slow down all calls of CUDA that come after it.
_Watched = tuple["Lane", list[Callable[[Drive], Callable[[], Measured]]]]


@contextmanager
def _watch_cpu(artifact: Artifact, runs: int) -> Iterator[_Watched]:
    from recreplay.tools.view.timed import TimedDevice

    device = TimedDevice()
    with lane_on(device, artifact) as lane:
        yield lane, [partial(_timed, calls=calls, runs=runs) for calls in device.calls]


@contextmanager
def _watch_cuda(artifact: Artifact, runs: int) -> Iterator[_Watched]:
    from recreplay.runtime.devices import open_device
    from recreplay.tools.view.graph_marks import MarkedDevice
    from recreplay.tools.view.profiled import profiled

    open_device("cuda").close()  # says what is missing, if CUDA is
    device = MarkedDevice(0)
    with lane_on(device, artifact) as lane:
        yield lane, [partial(profiled, marks=marks, runs=runs) for marks in device.marks]


@contextmanager
def lane_on(device: Device, artifact: Artifact) -> Iterator[Lane]:
    """A lane whose graphs are recorded by a device that watches; both are closed at the end."""
    from recreplay.runtime.loading import LaneLoader, open_lane

    tensors = LaneLoader(artifact, artifact.manifest.device, "error").tensors()
    lane = open_lane(artifact.manifest, artifact.path, device, tensors)
    try:
        yield lane
    finally:
        lane.close()
