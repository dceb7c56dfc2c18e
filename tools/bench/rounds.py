"""Rounds: every contender answers once a round, and who begins moves on by one each round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recreplay.tools.bench.latency import Latency
from recreplay.tools.bench.peers.contender import Contender


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
    before: Callable[[], Any] = lambda: None,
) -> dict[str, list[int]]:
    """Nanoseconds of each contender in each round.

    In a round each answers another request, since some share their tables with others: one must
    not find its rows in the cache because another has just read them. `before` is called ahead of
    every call and is not timed.
    """
    count = len(contenders)
    apart = max(1, requests // count)
    found: dict[str, list[int]] = {contender.name: [] for contender in contenders}
    for turn in range(rounds):
        for place in range(count):
            which = (place + turn) % count
            contender = contenders[which]
            before()
            found[contender.name].append(contender.time((turn + which * apart) % requests))
    return found


def latencies(found: dict[str, list[int]]) -> dict[str, Latency]:
    """Percentiles of each contender."""
    return {name: Latency.from_ns(samples) for name, samples in found.items()}
