"""Random requests of mixed sizes into a runtime, and what came of them: the page's live numbers."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Any

import numpy as np

from recreplay.runtime import Runtime
from recreplay.runtime.artifact import Artifact
from recreplay.tools.load.queries import Queries
from recreplay.tools.load.sizes import Sizes

_KEPT = 512  # latest latencies of a bucket


class LiveTraffic:
    """Drives `rate` requests a second; sizes are spread evenly over the buckets' logarithms."""

    def __init__(self, artifact: Artifact, runtime: Runtime, rate: float, seed: int = 0) -> None:
        self._runtime = runtime
        self._rate = rate
        self._draw = np.random.default_rng(seed)
        self._buckets = [b.size for b in artifact.manifest.buckets]
        whole = artifact.manifest.row_mask is not None
        most = self._buckets[-1] if whole else max(2, self._buckets[-1] * 5 // 4)  # some are split
        self._sizes = Sizes(
            lambda rng, count: np.exp(rng.uniform(0.0, np.log(most + 1), count)).astype(int), most
        )
        self._queries = (
            Queries(artifact.path, artifact.manifest, self._sizes, seed) if rate else None
        )
        self._lock = threading.Lock()
        self._asked: Counter[int] = Counter()
        self._latest: dict[int, deque[float]] = {b: deque(maxlen=_KEPT) for b in self._buckets}
        self._begun = time.monotonic()

    def drive(self, stop: threading.Event) -> None:
        """Replay until `stop` is set."""
        if not self._rate:
            return
        import torch

        torch.set_num_threads(1)  # of this thread; --measure times one thread as well
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1.0 / self._rate, time.monotonic() - 1.0)
            self.replay_one()

    def replay_one(self) -> None:
        """One request of a random size."""
        assert self._queries is not None, "no traffic was asked for"
        n = self._sizes(self._draw)
        request = self._queries.of(n)
        begun = time.perf_counter_ns()
        self._runtime.run(request)
        elapsed = (time.perf_counter_ns() - begun) / 1e3
        with self._lock:
            self._asked[n] += 1
            if n <= self._buckets[-1]:
                self._latest[next(b for b in self._buckets if b >= n)].append(elapsed)

    def snapshot(self) -> dict[str, Any]:
        """Counters since the start, and percentiles of each bucket's latest requests."""
        with self._lock:
            sizes = sorted(self._asked.items())
            latest = {b: list(times) for b, times in self._latest.items()}
        latency = {
            b: dict(zip(("p50", "p99"), np.percentile(t, [50, 99]).round(1).tolist(), strict=True))
            for b, t in latest.items()
            if t
        }
        return {
            "seconds": round(time.monotonic() - self._begun, 1),
            "rate": self._rate,
            "stats": self._runtime.stats(),
            "sizes": sizes,
            "latency_us": latency,
        }
