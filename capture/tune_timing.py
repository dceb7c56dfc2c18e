"""How long replays of several lanes and buckets take, measured in turns on the same requests."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from recreplay.runtime.lane import Prepared

Effort = Literal["quick", "full"]
Key = tuple[int, int]  # rows of a bucket, and whose it is
_WARM_UP = 5
_ROUNDS = {"quick": 60, "full": 200}
_SECONDS = {"quick": 2.0, "full": 10.0}


@dataclass(frozen=True)
class Timed:
    """A bucket, and requests in the order that its lane is filled in."""

    bucket: Prepared
    requests: Sequence[Any]

    def once(self, turn: int) -> int:
        """Nanoseconds of a request, filling included."""
        request = self.requests[turn % len(self.requests)]
        begun = time.perf_counter_ns()
        self.bucket.fill(request)
        self.bucket.replay()
        return time.perf_counter_ns() - begun


def medians(timed: Mapping[Key, Timed], effort: Effort) -> dict[Key, float]:
    """Median microseconds of each."""
    samples: dict[Key, list[int]] = {key: [] for key in timed}
    order = list(timed)
    end = time.perf_counter() + _SECONDS[effort]
    for turn in range(-_WARM_UP, _ROUNDS[effort]):
        for key in order:
            spent = timed[key].once(turn)
            if turn >= 0:
                samples[key].append(spent)
        order.append(order.pop(0))  # who comes first changes every round
        if turn > 0 and time.perf_counter() > end:
            break
    return {key: median(found) / 1e3 for key, found in samples.items()}
