"""The runtime's queue, lanes and batching as a discrete-event model, with measured latencies.

The sender is one thread on the same cores: it wakes late, queries that are due meanwhile are sent
one after the other, and where all cores work, one of the lanes waits for it. What is done in Python
is done by one thread at a time.

An accelerator, where a latency table of one is given, takes whole queries from a threshold on, one
at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from recreplay.tools.interpreter import SWITCH
from recreplay.tools.load.arrivals import Arrivals, draw_gap
from recreplay.tools.load.sizes import Sizes
from recreplay.tools.schedule.climb import RateClimb
from recreplay.tools.schedule.latency_table import LatencyTable
from recreplay.tools.schedule.measure import HostCosts
from recreplay.tools.schedule.setting import Setting


@dataclass(slots=True)
class _Query:
    due: float
    left: int  # parts that are not done


@dataclass(frozen=True, slots=True)
class _Part:
    query: _Query
    rows: int
    arrived: float


class Simulation:
    """One setting under load; feeds the p95 of each window to a climb, and follows its rate."""

    def __init__(
        self,
        setting: Setting,
        lanes: LatencyTable,
        host: HostCosts,
        sizes: Sizes,
        arrivals: Arrivals,
        climb: RateClimb,
        largest_bucket: int,
        accelerator: LatencyTable | None = None,
        seed: int = 0,
        users: int = 0,
    ) -> None:
        """`users`: the most that a replay has room for, where every query has one; 0: they have
        none."""
        self._setting, self._lanes, self._host = setting, lanes, host
        self._accelerator = accelerator
        self._sizes, self._arrivals, self._climb = sizes, arrivals, climb
        self._most = min(setting.chunk_rows or largest_bucket, largest_bucket)
        self._users = users or self._most  # a row each at least
        self._draw = np.random.default_rng(seed)
        self._env = simpy.Environment()
        self._line: deque[_Part] = deque()
        self._whole: deque[_Part] = deque()
        self._came = self._env.event()
        self._busy = 0
        self._python = simpy.Resource(self._env, 1)
        self._taken = 0.0  # seconds that the sender took from lanes at work
        self._window: list[float] = []
        self._updates = 0

    def run(self, updates: int) -> float:
        """Queries a second that hold the target, after so many windows."""
        env = self._env
        env.process(self._arrive())
        turn = simpy.Resource(env, 1)
        for _ in range(self._setting.lanes):
            env.process(self._lane(turn))
        if self._accelerator is not None:
            env.process(self._accelerate(self._accelerator))
        while self._updates < updates:
            env.step()
        return self._climb.achieved()

    def _arrive(self) -> Generator[Any, Any, None]:
        env, host = self._env, self._host
        due = since = 0.0
        mine: Any = None  # the interpreter, which who does not sleep keeps for a while
        while True:
            due += draw_gap(self._arrivals, self._climb.rate, self._draw)
            cost = host.send
            if due > env.now:
                if mine is not None:
                    self._python.release(mine)
                    mine = None
                cost = host.wake
                yield env.timeout(due - env.now + host.draw_late(self._busy, self._draw))
            if mine is None:
                mine = self._python.request()
                yield mine
                since = env.now
            if self._busy >= host.cores:
                self._taken += cost
            yield env.timeout(cost)
            if env.now - since >= SWITCH:
                self._python.release(mine)
                mine = None
            rows = self._sizes(self._draw)
            threshold = self._setting.threshold
            if self._accelerator is not None and threshold is not None and rows >= threshold:
                self._whole.append(_Part(_Query(due, 1), rows, env.now))
            else:
                step = self._setting.chunk_rows or rows
                cuts = [min(step, rows - at) for at in range(0, rows, step)]
                query = _Query(due, len(cuts))
                self._line.extend(_Part(query, n, env.now) for n in cuts)
            came, self._came = self._came, env.event()
            came.succeed()

    def _lane(self, turn: simpy.Resource) -> Generator[Any, Any, None]:
        env, delay = self._env, self._setting.max_delay_us
        while True:
            with turn.request() as mine:
                yield mine
                while not self._line:
                    yield self._came
                parts = [self._line.popleft()]
                rows = parts[0].rows
                until = parts[0].arrived + (delay or 0) / 1e6
                while delay is not None and rows < self._most and len(parts) < self._users:
                    if self._line:
                        if rows + self._line[0].rows > self._most:
                            break
                        parts.append(self._line.popleft())
                        rows += parts[-1].rows
                    elif env.now >= until:
                        break
                    else:
                        yield self._came | env.timeout(until - env.now)
            self._busy += 1
            work = self._lanes.draw(rows, self._busy, self._draw)
            hold = min(self._host.hold, work)
            with self._python.request() as mine:
                yield mine
                yield env.timeout(hold + (len(parts) - 1) * self._host.join)
            copied = rows if len(parts) > 1 else 0
            yield env.timeout(work - hold + copied * self._host.copy)
            while self._taken:
                taken, self._taken = self._taken, 0.0
                yield env.timeout(taken)
            self._busy -= 1
            for part in parts:
                self._finish(part)

    def _accelerate(self, table: LatencyTable) -> Generator[Any, Any, None]:
        while True:
            while not self._whole:
                yield self._came
            part = self._whole.popleft()
            yield self._env.timeout(table.draw(part.rows, 1, self._draw))
            self._finish(part)

    def _finish(self, part: _Part) -> None:
        part.query.left -= 1
        if part.query.left:
            return
        self._window.append(self._env.now - part.query.due)
        if len(self._window) >= self._climb.window:
            self._climb.observe(float(np.percentile(self._window, 95)))
            self._window.clear()
            self._updates += 1
