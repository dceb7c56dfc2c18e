"""How long a replay of so many rows keeps a lane: measured here, or read from a result file."""

from __future__ import annotations

import json
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from recreplay.runtime import Runtime, Serving
from recreplay.runtime.errors import RecReplayError
from recreplay.tools.load.queries import Queries

_SAMPLES = 60  # replays of each size and number of busy lanes, in each round
_SECONDS = 0.5  # and no longer than that for each
_ROUNDS = 4  # so that a disturbance does not hit one size alone


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
        if at == len(self.rows):  # above: as many rows more, at the last slope
            return _pick(table[-1], draw) * rows / self.rows[-1]
        low, high = self.rows[at - 1], self.rows[at]
        share = (rows - low) / (high - low)
        quantile = float(draw.random())
        return (1 - share) * _at(table[at - 1], quantile) + share * _at(table[at], quantile)

    def median(self, rows: int, busy: int) -> float:
        table = self.samples[min(busy, max(self.samples))]
        return float(np.interp(rows, self.rows, [float(np.median(s)) for s in table]))

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
            if not samples or any(len(found) != len(rows) for found in samples.values()):
                raise ValueError("as many latencies as rows are needed")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecReplayError(f"{path} is no latency table: {error!r}") from error
        return cls(rows, samples)


def measure(path: Path, queries: Queries, rows: Sequence[int], lanes: int) -> LatencyTable:
    """Time requests of each size, with one lane at work and with more: on one machine they share
    memory and caches, and in Python the interpreter."""
    samples: dict[int, tuple[tuple[float, ...], ...]] = {}
    for busy in range(1, lanes + 1):
        with Runtime.load(path, serving=Serving(lanes=busy)) as runtime:
            rounds = [[_time(runtime, queries, n, busy) for n in rows] for _ in range(_ROUNDS)]
            found = [sorted(chain.from_iterable(times)) for times in zip(*rounds, strict=True)]
            samples[busy] = tuple(tuple(times) for times in found)
    return LatencyTable(tuple(rows), samples)


def _time(runtime: Runtime, queries: Queries, rows: int, busy: int) -> list[float]:
    """Seconds between what a lane answers, while more waits: its work and all that goes with it,
    queueing, waking and answering."""
    requests = [queries.of(rows) for _ in range(17)]
    wanted = busy * (_SAMPLES + 3)
    found: list[float] = []
    last: dict[int, float] = {}
    sent, stopped = 0, threading.Event()
    end = time.perf_counter() + _SECONDS
    lock = threading.Lock()

    def send() -> None:
        nonlocal sent
        with lock:
            sent += 1
            request = requests[sent % len(requests)]
        runtime.submit(request).add_done_callback(answered)

    def answered(future: Future[Any]) -> None:
        now, lane = time.perf_counter(), threading.get_ident()
        with lock:
            if lane in last:
                found.append(now - last[lane])
            last[lane] = now
            more = sent < wanted and (now < end or len(found) < busy)
        if more:
            send()
        else:
            stopped.set()

    for request in requests[:3]:
        runtime.submit(request).result()
    for _ in range(2 * busy):
        send()
    stopped.wait()
    while runtime.stats()["queue"]["waiting"]:
        time.sleep(0.001)
    return found


def _pick(samples: tuple[float, ...], draw: np.random.Generator) -> float:
    return _at(samples, float(draw.random()))


def _at(samples: tuple[float, ...], quantile: float) -> float:
    return samples[min(len(samples) - 1, int(quantile * len(samples)))]
