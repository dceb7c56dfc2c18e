"""Rounds: every contender has a turn in each, and who begins moves on by one each round.

A turn is a few calls, of which the first does not count: a server that serves one model does not
find its caches full of other implementations. With cold caches a turn is one call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recreplay.tools.bench.latency import Latency
from recreplay.tools.bench.peers.contender import Contender

TURN = 5  # calls


@dataclass(frozen=True, slots=True)
class Spread:
    """The ratio of two contenders' medians, and the middle half of the rounds' ratios."""

    ratio: float
    p25: float
    p75: float

    @classmethod
    def of(cls, one_ns: Sequence[int], other_ns: Sequence[int]) -> Spread:
        """How many times longer `one` takes than `other`; both have a sample for each round."""
        one = np.asarray(one_ns, dtype=np.float64)
        other = np.asarray(other_ns, dtype=np.float64)
        low, high = np.percentile(one / other, [25, 75])
        middle = float(np.median(one) / np.median(other))
        return cls(round(middle, 3), round(float(low), 3), round(float(high), 3))

    def to_json(self) -> dict[str, float]:
        return {"ratio": self.ratio, "p25": self.p25, "p75": self.p75}


def play(
    contenders: Sequence[Contender],
    requests: int,
    rounds: int,
    evict: Callable[[], Any] | None = None,
) -> dict[str, list[int]]:
    """Nanoseconds of every call that counts, of each contender: as many for all, round by round.

    Each answers other requests than the one before it, since some share their tables with others:
    one must not find its rows in the cache because another has just read them. `evict` empties the
    caches ahead of every call and is not timed.
    """
    calls, skipped = (1, 0) if evict is not None else (TURN, 1)
    count = len(contenders)
    found: dict[str, list[int]] = {contender.name: [] for contender in contenders}
    asked = itertools.cycle(range(requests))
    for turn in range(rounds):
        for place in range(count):
            contender = contenders[(place + turn) % count]
            for call in range(calls):
                if evict is not None:
                    evict()
                taken = contender.time(next(asked))
                if call >= skipped:
                    found[contender.name].append(taken)
    return found


def latencies(found: dict[str, list[int]]) -> dict[str, Latency]:
    """Percentiles of each contender."""
    return {name: Latency.from_ns(samples) for name, samples in found.items()}
