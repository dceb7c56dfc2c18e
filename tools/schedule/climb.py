"""The two searches of DeepRecSched, as pure logic: for the rate, and for the setting.

After `scheduler.py` and `loadGenerator.py` of DeepRecSys (arXiv 2001.02772): p95 over windows of 64
queries, a dead band of 10 %, 50 rates spaced evenly in their logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from statistics import median
from typing import TypeVar

WINDOW = 64  # queries whose p95 is one reading, at least
_TARGETS = 4  # and what arrives in so many targets
BAND = 0.10  # below target / (1 + BAND), the rate is raised
STEPS = 50  # rates
T = TypeVar("T")


def rate_grid(low: float, high: float, steps: int = STEPS) -> tuple[float, ...]:
    """Ascending rates from `low` to `high`, spaced evenly in their logarithm."""
    ratio = (high / low) ** (1 / (steps - 1))
    return tuple(low * ratio**i for i in range(steps))


class RateClimb:
    """Finds the highest rate that holds a target: one step up or down the grid per window."""

    def __init__(self, rates: Sequence[float], target: float, start: float) -> None:
        self._rates = tuple(rates)
        self._target = target
        self._at = max((i for i, r in enumerate(rates) if r <= start), default=0)
        self._tried: list[float] = []
        self._held: list[bool] = []
        self.best_window: tuple[float, float] | None = None  # its p95 and its rate

    @property
    def rate(self) -> float:
        return self._rates[self._at]

    @property
    def window(self) -> int:
        """Queries of the next reading at the present rate. Where 64 come in less time than one may
        take, the rate would be raised far beyond what is held before a queue showed in their p95.
        """
        return max(WINDOW, ceil(_TARGETS * self._target * self.rate))

    @property
    def windows(self) -> int:
        """How many were observed."""
        return len(self._tried)

    def observe(self, p95: float) -> None:
        """The p95 of a window of queries that arrived at the present rate."""
        self._tried.append(self.rate)
        self._held.append(p95 <= self._target)
        if self.best_window is None or p95 < self.best_window[0]:
            self.best_window = p95, self.rate
        if p95 > self._target:
            self._at = max(0, self._at - 1)
        elif p95 < self._target / (1 + BAND):
            self._at = min(len(self._rates) - 1, self._at + 1)

    def achieved(self) -> float:
        """The median of the last half of the rates tried; 0 where not one window held, or where
        most did not at the lowest rate, from which there is no step down."""
        half = len(self._tried) // 2
        held = self._held[half:]
        if not any(held):
            return 0.0
        found = float(median(self._tried[half:]))
        return 0.0 if found <= self._rates[0] and 2 * sum(held) < len(held) else found


def hill_climb(
    candidates: Sequence[T], value: Callable[[T], float], patience: int = 1
) -> tuple[T, float]:
    """Try candidates in order while they get better; the best, and its value.

    DeepRecSys stops at the first that is worse. `patience` is how many in a row may be: values are
    measured, and neighbours differ by less than their noise.
    """
    best, most = candidates[0], value(candidates[0])
    worse = 0
    for candidate in candidates[1:]:
        found = value(candidate)
        if found > most:
            best, most, worse = candidate, found, 0
        else:
            worse += 1
            if worse >= patience:
                break
    return best, most
