"""How long a replay of so many rows keeps a lane: measured, or read from a result file."""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from recreplay.runtime.errors import RecReplayError


@dataclass(frozen=True)
class LatencyTable:
    """Measured seconds by rows, for each number of lanes that work at the same time."""

    rows: tuple[int, ...]  # ascending
    samples: dict[int, tuple[tuple[float, ...], ...]]  # busy lanes -> per rows -> seconds

    def draw(self, rows: int, busy: int, draw: np.random.Generator) -> float:
        """Seconds of one replay: a measured sample of the two sizes around, in proportion."""
        table = self.samples[min(busy, max(self.samples))]
        at = bisect_left(self.rows, rows)
        if at == 0:
            return _pick(table[0], draw)
        if at == len(self.rows):  # above: in proportion to its rows
            return _pick(table[-1], draw) * rows / self.rows[-1]
        low, high = self.rows[at - 1], self.rows[at]
        share = (rows - low) / (high - low)
        quantile = float(draw.random())
        return (1 - share) * _at(table[at - 1], quantile) + share * _at(table[at], quantile)

    def median(self, rows: int, busy: int) -> float:
        table = self.samples[min(busy, max(self.samples))]
        found = float(np.interp(rows, self.rows, [float(np.median(s)) for s in table]))
        return found * max(1.0, rows / self.rows[-1])  # above: as `draw`

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": list(self.rows),
            "median_ms": {
                str(busy): [round(float(np.median(s)) * 1e3, 4) for s in table]
                for busy, table in self.samples.items()
            },
        }

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """From a JSON file `{"rows": [...], "median_ms": {"1": [...]}}`, an accelerator's say."""
        try:
            data = json.loads(path.read_text())
            rows = tuple(int(r) for r in data["rows"])
            samples: dict[int, tuple[tuple[float, ...], ...]] = {
                int(busy): tuple((float(ms) / 1e3,) for ms in found)
                for busy, found in data["median_ms"].items()
            }
            _check(rows, samples)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecReplayError(f"{path} is no latency table: {error!r}") from error
        return cls(rows, samples)


def _check(rows: tuple[int, ...], samples: dict[int, tuple[tuple[float, ...], ...]]) -> None:
    """Raises ValueError where a simulation could not draw from it, or time would run backwards."""
    if not rows or rows[0] < 1 or any(one >= other for one, other in pairwise(rows)):
        raise ValueError(f"rows are {list(rows)}; expected numbers from 1 on, in ascending order")
    if 1 not in samples:
        raise ValueError(f"latencies are of {list(samples)} busy; expected those of 1")
    for found in samples.values():
        if len(found) != len(rows):
            raise ValueError("as many latencies as rows are needed")
        if not all(isfinite(seconds) and seconds > 0 for (seconds,) in found):
            raise ValueError("a latency is not a finite number above 0")


def _pick(samples: tuple[float, ...], draw: np.random.Generator) -> float:
    return _at(samples, float(draw.random()))


def _at(samples: tuple[float, ...], quantile: float) -> float:
    return samples[min(len(samples) - 1, int(quantile * len(samples)))]
