"""Open-loop load on a runtime: queries arrive when they are due, whether or not others are done.

Latency counts from the moment a query was due, so that a server that stalls cannot hide the
queries that it kept from being sent (coordinated omission).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from recreplay.runtime.errors import DeadlineExceeded, Overloaded, RecReplayError

Request = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Load:
    """What became of the queries of one run. Latencies in milliseconds, of answered ones."""

    offered: int
    answered: int
    refused: int  # Overloaded
    expired: int  # DeadlineExceeded
    failed: int
    seconds: float
    latency_ms: dict[str, float]
    late_ms: float  # p99 of how late the generator itself sent

    @property
    def qps(self) -> float:
        return self.answered / self.seconds

    def to_json(self) -> dict[str, Any]:
        return {
            "offered": self.offered,
            "answered": self.answered,
            "refused": self.refused,
            "expired": self.expired,
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
            "qps": round(self.qps, 2),
            "latency_ms": self.latency_ms,
            "generator_late_ms_p99": self.late_ms,
        }


def sleep_until(due: float) -> None:
    """To the end, some 0.1 ms too long: a thread that spins takes a core from the lanes."""
    while (left := due - time.perf_counter()) > 0:
        time.sleep(left)


class Answers(Protocol):
    """A runtime, or a funnel of them."""

    def submit(self, inputs: Request, /) -> Future[Any]: ...


class Sender:
    """Sends queries and tells `done` the latency in seconds, or the error, of each."""

    def __init__(self, runtime: Answers, done: Callable[[float, BaseException | None], None]):
        self._runtime, self._done = runtime, done
        self._under_way = 0
        self._idle = threading.Condition()

    def send(self, request: Request, due: float) -> float:
        """Wait until `due`, a time of `time.perf_counter`, then submit; returns how many seconds
        late that was."""
        sleep_until(due)
        late = time.perf_counter() - due
        try:
            future = self._runtime.submit(request)
        except Overloaded as error:
            self._done(time.perf_counter() - due, error)
            return late
        with self._idle:
            self._under_way += 1

        def finished(future: Future[Any]) -> None:
            self._done(time.perf_counter() - due, future.exception())
            with self._idle:
                self._under_way -= 1
                self._idle.notify()

        future.add_done_callback(finished)
        return late

    def wait(self, seconds: float = 60.0) -> None:
        """Until all that was sent is answered, however long the queue; raises where `seconds` go by
        without an answer."""
        with self._idle:
            while left := self._under_way:
                if not self._idle.wait_for(partial(self._fewer_than, left), seconds):
                    raise RecReplayError(f"none of {left} queries was answered in {seconds:g} s")

    def _fewer_than(self, count: int) -> bool:
        return self._under_way < count


def run_load(runtime: Answers, requests: Sequence[Request], times: Sequence[float]) -> Load:
    """Send `requests[i]` at `times[i]` seconds from now, and wait for all answers."""
    latencies: list[float] = []
    counts = {"refused": 0, "expired": 0, "failed": 0}
    lock = threading.Lock()

    def done(latency: float, error: BaseException | None) -> None:
        with lock:
            if error is None:
                latencies.append(latency)
            elif isinstance(error, Overloaded):
                counts["refused"] += 1
            elif isinstance(error, DeadlineExceeded):
                counts["expired"] += 1
            else:
                counts["failed"] += 1

    sender = Sender(runtime, done)
    begun = time.perf_counter() + 0.05
    late = [sender.send(r, begun + at) for r, at in zip(requests, times, strict=True)]
    sender.wait()
    seconds = max(time.perf_counter() - begun, 1e-9)
    return Load(
        len(requests),
        len(latencies),
        **counts,
        seconds=seconds,
        latency_ms=percentiles_ms(latencies),
        late_ms=round(float(np.percentile(late, 99)) * 1e3, 3) if late else 0.0,
    )


def percentiles_ms(latencies: Sequence[float]) -> dict[str, float]:
    if not latencies:
        return {}
    marks = np.percentile(np.asarray(latencies) * 1e3, [50, 90, 95, 99])
    return {f"p{p}": round(float(m), 3) for p, m in zip((50, 90, 95, 99), marks, strict=True)}
