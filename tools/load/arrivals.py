"""When queries arrive: gaps between them, in seconds."""

from __future__ import annotations

from math import isfinite
from typing import Any, Literal, get_args

import numpy as np

from recreplay.runtime.errors import RecReplayError

Arrivals = Literal["exponential", "poisson"]
ARRIVALS: tuple[Arrivals, ...] = get_args(Arrivals)
_MOST = 10_000_000  # queries of one run: all are made before the first is sent


def draw_gap(kind: Arrivals, rate: float, draw: np.random.Generator) -> float:
    """The next gap at `rate` queries a second.

    `exponential` is a Poisson process. `poisson` is what the code of DeepRecSys draws
    (`loadGenerator.py`): the gap itself from a Poisson distribution, in whole milliseconds, which
    is far less bursty and knows no gap between 0 and 1 ms.
    """
    if kind == "exponential":
        return float(draw.exponential(1.0 / rate))
    return float(draw.poisson(1e3 / rate)) / 1e3


def check_arrivals(kind: str) -> Arrivals:
    for known in ARRIVALS:
        if kind == known:
            return known
    raise RecReplayError(f"unknown arrivals {kind!r}; expected one of {', '.join(ARRIVALS)}")


def check_rate(rate: float, seconds: float) -> None:
    """Raises where there would be no end of the arrivals."""
    for option, value in (("--rate", rate), ("--seconds", seconds)):
        if not (isfinite(value) and value > 0):
            raise RecReplayError(f"{option} is {value:g}; expected a finite number above 0")
    if rate * seconds > _MOST:
        raise RecReplayError(
            f"--rate {rate:g} for --seconds {seconds:g} are {rate * seconds:.3g} queries; at most "
            f"{_MOST:,} can be made"
        )


def arrival_times(kind: Arrivals, rate: float, seconds: float, seed: int) -> Any:
    """Times of all arrivals in `[0, seconds)`, float64."""
    draw = np.random.default_rng(seed)
    found, now = [], draw_gap(kind, rate, draw)
    while now < seconds:
        found.append(now)
        now += draw_gap(kind, rate, draw)
    return np.array(found)
