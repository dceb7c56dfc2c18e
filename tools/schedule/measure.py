"""What the simulator is fed with, measured here: what lanes and the sender do with a core.

Lanes work in a closed loop on requests of all sizes in a random order, cut afresh from a pool that
no cache holds: a size that is timed by itself, on a few requests, is up to a third faster than
among others. Times are of the lane's own thread, since what it waits for, a core or the
interpreter, is simulated. The sender shares both: it wakes late where all cores work, and takes its
time from the lanes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from recreplay.runtime import Runtime, Serving
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.loading import LaneLoader
from recreplay.tools.bench.timed_lane import TimedLane
from recreplay.tools.load.generator import sleep_until
from recreplay.tools.load.queries import Queries
from recreplay.tools.schedule.latency_table import LatencyTable

if TYPE_CHECKING:
    from recreplay.runtime.lane import Lane

_SAMPLES = 80  # replays of each size, for each number of busy lanes
_SECONDS = 20.0  # and no longer than that for all of them
_NAP = 2e-3  # seconds that a thread beside them sleeps at a time
_SENT = 400  # queries, at once and at half of what the lanes can do
_JOINED = 33  # requests of one row at once: the first is replayed, then the others together
_TIMES = 40  # that this is done


@dataclass(frozen=True)
class HostCosts:
    """What a query costs apart from its replay, in seconds."""

    cores: int  # that lanes and the sender share
    send: float = 0.0  # of a core, to make and submit one query right after another
    wake: float = 0.0  # the same where the sender has slept
    hold: float = 0.0  # of the interpreter, by a lane, for each replay
    join: float = 0.0  # the same for each further query in it
    copy: float = 0.0  # of a lane, for each row of a replay of several queries
    late: dict[int, tuple[float, ...]] = field(default_factory=dict)  # by busy lanes, ascending

    def draw_late(self, busy: int, draw: np.random.Generator) -> float:
        """How long after its time a sleeping sender wakes, while so many lanes work."""
        found = self.late.get(min(busy, max(self.late, default=0)))
        return found[int(draw.integers(len(found)))] if found else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "cores": self.cores,
            "send_us": round(self.send * 1e6, 1),
            "wake_us": round(self.wake * 1e6, 1),
            "hold_us": round(self.hold * 1e6, 1),
            "join_us": round(self.join * 1e6, 1),
            "copy_us_per_row": round(self.copy * 1e6, 3),
            "late_us_p95": {
                str(busy): round(float(np.percentile(found, 95)) * 1e6, 1)
                for busy, found in self.late.items()
            },
        }


def measure(
    path: Path, queries: Queries, rows: Sequence[int], cores: int
) -> tuple[LatencyTable, HostCosts]:
    """Time requests of `rows`, ascending, with one lane at work and with more, up to `cores`: on
    one machine they share memory and caches, and in Python the interpreter."""
    samples: dict[int, tuple[tuple[float, ...], ...]] = {}
    late = {0: tuple(_nap() for _ in range(200))}
    for busy in range(1, cores + 1):
        with Runtime.load(path, serving=Serving(lanes=busy)) as runtime:
            loop = _ClosedLoop(runtime, queries, rows, busy)
            late[busy] = tuple(loop.run())
            samples[busy] = tuple(tuple(sorted(found)) for found in loop.found)
    table = LatencyTable(tuple(rows), samples)
    gap = 2 * table.median(queries.mean_rows(), cores) / cores
    send, wake = (_send(path, queries, cores, seconds) for seconds in (0.0, gap))
    return table, HostCosts(cores, send, wake, *_packing(path, queries), late)


class _ClosedLoop:
    """Two requests under way for each lane, until every size was replayed often enough."""

    def __init__(self, runtime: Runtime, queries: Queries, rows: Sequence[int], lanes: int) -> None:
        self._runtime, self._queries, self._rows, self._lanes = runtime, queries, rows, lanes
        self.found: list[list[float]] = [[] for _ in rows]
        self._draw = np.random.default_rng(0)
        self._order: list[int] = []
        self._cycles = 0
        self._since: dict[int, float] = {}  # by lane's thread: what it had worked, in seconds
        self._lock = threading.Lock()
        self._under_way = 0
        self._ended = threading.Event()

    def run(self) -> list[float]:
        """Fill `found`; returns how late a thread beside the lanes woke, in seconds."""
        for _ in range(2 * self._lanes):
            self._next()
        end, woke = time.perf_counter() + _SECONDS, []
        while not self._ended.is_set():
            woke.append(_nap())
            if time.perf_counter() > end:
                self._cycles = max(self._cycles, _SAMPLES)
        return woke

    def _next(self) -> None:
        with self._lock:
            if not self._order:
                self._cycles += 1
                self._order = self._draw.permutation(len(self._rows)).tolist()
            if self._cycles > _SAMPLES and all(self.found):
                if not self._under_way:
                    self._ended.set()
                return
            at = self._order.pop()
            self._under_way += 1
        request = self._queries.of(self._rows[at])
        self._runtime.submit(request).add_done_callback(partial(self._answered, at))

    def _answered(self, at: int, future: Future[Any]) -> None:
        worked, lane = time.thread_time(), threading.get_ident()
        with self._lock:
            self._under_way -= 1
            if lane in self._since:
                self.found[at].append(worked - self._since[lane])
        self._next()
        self._since[lane] = time.thread_time()  # what a sender does is none of a lane's work


def _nap() -> float:
    """Sleep; how much too long, in seconds."""
    due = time.perf_counter() + _NAP
    sleep_until(due)
    return time.perf_counter() - due


def _send(path: Path, queries: Queries, cores: int, gap: float) -> float:
    """Seconds of a core that it takes to make and submit a query, with `gap` seconds between them:
    more where they are rare, as the caches hold other things by then."""
    with Runtime.load(path, serving=Serving(lanes=cores)) as runtime:
        futures, due, begun = [], time.perf_counter(), time.thread_time()
        for _ in range(_SENT):
            due += gap
            sleep_until(due)
            futures.append(runtime.submit(queries.next()))
        spent = time.thread_time() - begun
        for future in futures:
            future.result()
    return spent / _SENT


def _packing(path: Path, queries: Queries) -> tuple[float, float, float]:
    """Seconds that a lane needs the interpreter for a replay of one query, and for each further
    query that is packed into it; and for each row of a pack, which is copied once more than one
    query is: as long as filling takes."""
    artifact = open_artifact(path)
    lane = LaneLoader(artifact, artifact.manifest.device, "error").lane()
    timed = TimedLane(lane)
    with Runtime(artifact, cast("Lane", timed), serving=Serving(max_delay_us=0)) as runtime:

        def spent(requests: int, rows: int = 1) -> tuple[float, int, int]:
            """Outside of replays; of how many replays, and of how many further queries in them."""
            timed.replay_ns.clear()
            before = runtime.stats()["queue"]
            futures = [runtime.submit(queries.of(rows)) for _ in range(requests)]
            for future in futures:
                future.result()
            after = runtime.stats()["queue"]
            seconds = after["replay_ns"] - before["replay_ns"] - sum(timed.replay_ns)
            replays = len(timed.replay_ns)
            return seconds / 1e9, replays, requests - replays

        for _ in range(8):
            runtime.submit(queries.of(1)).result()
        hold = float(np.median([spent(1)[0] for _ in range(_TIMES)]))
        packs = [spent(_JOINED) for _ in range(_TIMES)]
        largest = artifact.manifest.buckets[-1].size
        full = float(np.median([spent(1, largest)[0] for _ in range(_TIMES)]))
    joins = [(seconds - replays * hold) / more for seconds, replays, more in packs if more]
    join = max(0.0, float(np.median(joins))) if joins else 0.0
    return hold, join, max(0.0, full - hold) / largest
