"""Random requests of mixed sizes into a runtime, and what came of them: the page's live numbers."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Any

import numpy as np

from recreplay.runtime import Runtime
from recreplay.runtime.artifact import Artifact
from recreplay.tools.view.samples import sample_requests

_KEPT = 512  # latest latencies of a bucket
_POOL = 4  # requests of the largest size, which others are cut from


class LiveTraffic:
    """Drives `rate` requests a second; sizes are spread evenly over the buckets' logarithms."""

    def __init__(self, artifact: Artifact, runtime: Runtime, rate: float, seed: int = 0) -> None:
        self._runtime = runtime
        self._rate = rate
        self._draw = np.random.default_rng(seed)
        self._buckets = [b.size for b in artifact.manifest.buckets]
        self._most = max(2, self._buckets[-1] * 5 // 4)  # some requests are split
        self._pool = sample_requests(artifact, self._most, _POOL) if rate else []
        self._lock = threading.Lock()
        self._sizes: Counter[int] = Counter()
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
        n = int(np.exp(self._draw.uniform(0.0, np.log(self._most + 1))))
        whole = self._pool[int(self._draw.integers(len(self._pool)))]
        request = {name: array[:n] for name, array in whole.items()}
        begun = time.perf_counter_ns()
        self._runtime.run(request)
        elapsed = (time.perf_counter_ns() - begun) / 1e3
        with self._lock:
            self._sizes[n] += 1
            if n <= self._buckets[-1]:
                self._latest[next(b for b in self._buckets if b >= n)].append(elapsed)

    def snapshot(self) -> dict[str, Any]:
        """Counters since the start, and percentiles of each bucket's latest requests."""
        with self._lock:
            sizes = sorted(self._sizes.items())
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
