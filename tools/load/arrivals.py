"""When queries arrive: gaps between them, in seconds."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from recreplay.runtime.errors import RecReplayError

Arrivals = Literal["exponential", "poisson"]
ARRIVALS: tuple[Arrivals, ...] = get_args(Arrivals)


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


def arrival_times(kind: Arrivals, rate: float, seconds: float, seed: int) -> Any:
    """Times of all arrivals in `[0, seconds)`, float64."""
    draw = np.random.default_rng(seed)
    found, now = [], draw_gap(kind, rate, draw)
    while now < seconds:
        found.append(now)
        now += draw_gap(kind, rate, draw)
    return np.array(found)
