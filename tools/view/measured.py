"""How long each segment of an artifact takes here, on the CPU: every bound launch is timed.

Replays run on different random requests, since one request again and again would find its rows in
the cache. The segments of a replay are timed one by one; whole replays are timed apart from that,
so that what the clock costs is not in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.runtime.errors import RecReplayError

if TYPE_CHECKING:
    from recreplay.runtime.artifact import Artifact

REQUESTS = 17
WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """Microseconds: medians of each segment, and percentiles of whole replays."""

    runs: int
    segments_us: tuple[float, ...]
    replay_us: dict[str, float]


def measure(
    artifact: Artifact,
    buckets: list[int] | None = None,
    runs: int = 200,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[int, Measured]:
    """Time `runs` full replays of each bucket, largest first; a result for each size."""
    from recreplay.runtime.lane import Lane
    from recreplay.runtime.loading import LaneLoader
    from recreplay.runtime.segments import load_package
    from recreplay.tools.quiet import quiet
    from recreplay.tools.view.timed import TimedDevice

    manifest, root = artifact.manifest, artifact.path
    if manifest.device != "cpu":
        raise RecReplayError(
            "--measure times segments on the CPU; this artifact is for "
            f"{manifest.device!r}, so its times stay the cost model's"
        )
    device = TimedDevice(artifact)
    tensors = LaneLoader(artifact, manifest.device, "error").tensors()
    packages = {
        key: load_package(package.compiler, root / package.path, device.torch_device)
        for key, package in manifest.packages.items()
    }
    lane = Lane(manifest, device, packages, tensors, "error")
    try:
        found = {}
        sizes = sorted((b.size for b in manifest.buckets), reverse=True)
        for size, calls in zip(sizes, device.calls, strict=True):
            if buckets is None or size in buckets:
                progress(f"bucket {size}: {runs} replays, segment by segment")
                with quiet():
                    found[size] = _measure_one(artifact, lane, size, calls, runs)
        return found
    finally:
        lane.close()
        for loaded in packages.values():
            loaded.close()


def _measure_one(artifact: Artifact, lane: Any, size: int, calls: Any, runs: int) -> Measured:
    from recreplay.runtime.mixed import make_checker
    from recreplay.tools.view.samples import sample_requests

    segments = calls[1:-1]  # the first call uploads and the last downloads: nothing, on the CPU
    requests = sample_requests(artifact, size, REQUESTS)
    checker = make_checker(artifact.manifest, "off")
    arrays = [checker.check(request)[0] for request in requests]
    prepared = lane.prepare_in(size, size)
    clock = time.perf_counter_ns
    stamps = np.zeros((runs, len(segments) + 1), dtype=np.int64)
    whole = []
    for turn in range(-min(WARM_UP, runs), runs):
        prepared.fill(arrays[turn % REQUESTS])
        row = [clock()]
        for call in segments:
            call()
            row.append(clock())
        if turn >= 0:
            stamps[turn] = row
        prepared.fill(arrays[(turn + 7) % REQUESTS])
        begun = clock()
        prepared.replay()
        if turn >= 0:
            whole.append(clock() - begun)
    medians = np.median(np.diff(stamps, axis=1), axis=0) / 1e3
    marks = np.percentile(np.asarray(whole, dtype=np.float64), [50, 90, 95, 99]) / 1e3
    named = zip(("p50", "p90", "p95", "p99"), marks, strict=True)
    return Measured(
        runs,
        tuple(round(float(m), 3) for m in medians),
        {name: round(float(value), 3) for name, value in named},
    )
