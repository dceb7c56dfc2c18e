"""Latencies in microseconds as percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Latency:
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def from_ns(cls, samples: Sequence[int]) -> Latency:
        """From samples in nanoseconds."""
        found = np.percentile(np.asarray(samples, dtype=np.float64), [50, 90, 95, 99]) / 1e3
        return cls(*(round(float(value), 3) for value in found))

    def to_json(self) -> dict[str, float]:
        return {"p50": self.p50, "p90": self.p90, "p95": self.p95, "p99": self.p99}
