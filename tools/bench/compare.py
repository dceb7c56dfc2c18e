"""Eager against replay: alternating, in one process, one thread, on rotating requests.

Only the ratio of two times of one run means something on a shared machine, so each pair is measured
back to back, and which of the two goes first changes every round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.closeness import all_close, column_scale
from recreplay.runtime.errors import ParityError
from recreplay.runtime.lane import Lane
from recreplay.runtime.loading import LaneLoader
from recreplay.tools.bench.eager import Call, EagerModel
from recreplay.tools.bench.latency import Latency
from recreplay.tools.bench.requests import (
    COUNT,
    as_arrays,
    as_the_model_takes_them,
    model_inputs,
    random_requests,
)
from recreplay.tools.bench.timed_lane import TimedLane
from recreplay.tools.quiet import quiet

if TYPE_CHECKING:
    from recreplay.tools.target import Target

RTOL, ATOL = 1e-4, 1e-5
# Of an output's ids or flags, how many may be others, and how many in other places.
MOST_OTHERS, MOST_MOVED, ONE_PAIR = 0.01, 0.05, 2
WARM_UP = 20  # pairs before the first that counts, at most
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class HostCost:
    """`Runtime.run`, the replay inside of it, and what the one adds to the other, call by call."""

    run: Latency
    replay: Latency
    overhead: Latency

    @classmethod
    def of(cls, whole_ns: Sequence[int], replay_ns: Sequence[int]) -> HostCost:
        added = [whole - replay for whole, replay in zip(whole_ns, replay_ns, strict=True)]
        return cls(*map(Latency.from_ns, (whole_ns, replay_ns, added)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One batch size. `speedup` is the ratio of medians; the quartiles are of the pairs' ratios."""

    batch: int
    bucket: int
    padded_rows: int
    runs: int
    requests: int
    eager: Latency
    replay: Latency
    speedup: float
    speedup_p25: float
    speedup_p75: float
    max_abs_error: float
    host: HostCost | None  # None where a request is split over several replays

    def to_json(self) -> dict[str, Any]:
        host = self.host
        return {
            "batch": self.batch,
            "bucket": self.bucket,
            "padded_rows": self.padded_rows,
            "runs": self.runs,
            "requests": self.requests,
            "eager_us": self.eager.to_json(),
            "replay_us": self.replay.to_json(),
            "speedup": self.speedup,
            "speedup_p25": self.speedup_p25,
            "speedup_p75": self.speedup_p75,
            "max_abs_error": self.max_abs_error,
            "host": None
            if host is None
            else {
                "run_us": host.run.to_json(),
                "graph_us": host.replay.to_json(),
                "overhead_us": host.overhead.to_json(),
            },
        }


class Session:
    """A loaded artifact beside the model that it was captured from."""

    def __init__(self, target: Target, path: Path, device: str = "cpu") -> None:
        self._target = target
        self._artifact = open_artifact(path)
        manifest = self._artifact.manifest
        self.lane = LaneLoader(self._artifact, device, "error").lane()
        self.runtime = Runtime(self._artifact, self.lane)
        self.eager = EagerModel(target, device, model_inputs(manifest))

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.runtime.close()

    def requests(self, rows: int, count: int = COUNT, seed: int = 7) -> list[dict[str, Tensor]]:
        """Different requests of so many rows."""
        return random_requests(self._target, self._artifact, rows, count, seed)

    def check(self, request: dict[str, Tensor]) -> float:
        """Replay one request, compare it with eager, and return the largest difference."""
        (call,) = self._calls([request])
        with torch.inference_mode():
            want = self.eager.arrays(call())
        return largest_difference(self.runtime.run(as_arrays(request)), want)

    def compare(self, batch: int, runs: int) -> Comparison:
        """Measure one batch size with `runs` pairs."""
        requests = self.requests(batch)
        arrays = [as_arrays(request) for request in requests]
        calls = self._calls(requests)
        with quiet():
            before = self.runtime.stats()
            self._pairs(calls, arrays, min(runs, WARM_UP))
            eager_ns, replay_ns, worst = self._pairs(calls, arrays, runs)
            after = self.runtime.stats()
            largest = self.runtime.manifest.buckets[-1].size
            host = self.host_cost(arrays, runs) if batch <= largest else None
        eager, replay = Latency.from_ns(eager_ns), Latency.from_ns(replay_ns)
        quartiles = np.percentile(np.asarray(eager_ns) / np.asarray(replay_ns), [25, 75])
        answered = after["requests"] - before["requests"]
        return Comparison(
            batch=batch,
            bucket=next(
                (b.size for b in self.runtime.manifest.buckets if b.size >= batch), largest
            ),
            padded_rows=(after["padded_rows"] - before["padded_rows"]) // answered,
            runs=runs,
            requests=len(requests),
            eager=eager,
            replay=replay,
            speedup=round(eager.p50 / replay.p50, 3),
            speedup_p25=round(float(quartiles[0]), 3),
            speedup_p75=round(float(quartiles[1]), 3),
            max_abs_error=worst,
            host=host,
        )

    def _calls(self, requests: Sequence[dict[str, Tensor]]) -> list[Call]:
        plain = as_the_model_takes_them(self.runtime.manifest, requests)
        return [self.eager.prepare(request) for request in plain]

    def _pairs(
        self, calls: Sequence[Call], arrays: Sequence[dict[str, Array]], runs: int
    ) -> tuple[list[int], list[int], float]:
        """Nanoseconds of each eager call and of each replay, and the largest difference seen.

        The results of the last rounds are kept, and compared when all are timed.
        """
        run, clock = self.runtime.run, time.perf_counter_ns
        eager_ns, replay_ns = [], []
        results: dict[int, tuple[Any, dict[str, Array]]] = {}
        for turn in range(runs):
            at = turn % len(calls)
            call, request = calls[at], arrays[at]
            if turn % 2:
                t0 = clock()
                got = run(request)
                t1 = clock()
                replay_ns.append(t1 - t0)
            with torch.inference_mode():
                t0 = clock()
                want = call()
                t1 = clock()
            eager_ns.append(t1 - t0)
            if not turn % 2:
                t0 = clock()
                got = run(request)
                t1 = clock()
                replay_ns.append(t1 - t0)
            results[at] = (want, got)
        worst = max(
            largest_difference(got, self.eager.arrays(want)) for want, got in results.values()
        )
        return eager_ns, replay_ns, worst

    def timed_runtime(self) -> tuple[Runtime, TimedLane]:
        """A runtime on the same lane, and the times of its replays. It is never closed, since the
        lane is not its own."""
        timed = TimedLane(self.lane)
        return Runtime(self._artifact, cast("Lane", timed)), timed

    def host_cost(self, requests: Sequence[Mapping[str, Any]], runs: int) -> HostCost:
        """Time whole runs and, inside of each, the replay."""
        runtime, timed = self.timed_runtime()
        for request in requests[:WARM_UP]:
            runtime.run(request)
        return HostCost.of(*host_times(runtime, timed, requests, range(runs)))


def host_times(
    runtime: Runtime, timed: TimedLane, requests: Sequence[Mapping[str, Any]], turns: range
) -> tuple[list[int], list[int]]:
    """Nanoseconds of whole runs and, inside of each, of the replay."""
    run, clock = runtime.run, time.perf_counter_ns
    whole_ns, replay_ns = [], []
    for turn in turns:
        request = requests[turn % len(requests)]
        timed.replay_ns.clear()
        t0 = clock()
        run(request)
        t1 = clock()
        whole_ns.append(t1 - t0)
        replay_ns.append(sum(timed.replay_ns))  # of its parts, where it has some
    return whole_ns, replay_ns


def _check_ids(name: str, found: Array, expected: Array, other: str) -> None:
    moved = others = int((found != expected).sum())
    if expected.ndim > 1:  # a row of ids, in whatever order
        others = int((np.sort(found, -1) != np.sort(expected, -1)).sum())
    size = expected.size
    if others > MOST_OTHERS * size or moved > max(ONE_PAIR, MOST_MOVED * size):
        raise ParityError(
            f"output {name!r} of the replay differs from {other} in {moved} of {size} places for a "
            f"request of {len(expected)} rows, in {others} whatever their order; expected shares "
            f"of at most {MOST_MOVED} and {MOST_OTHERS}, which is what roundings may decide"
        )


def largest_difference(
    got: Mapping[str, Array], want: Mapping[str, Array], other: str = "the eager model"
) -> float:
    """The largest absolute difference of two results; ParityError where it is beyond tolerance.

    `other` says whose answer `want` is. Of ids and flags a few places may differ, which two ways to
    round decide between; capture has compared all others.
    """
    if set(got) != set(want):
        raise ParityError(f"replay gives {sorted(got)}, {other} gives {sorted(want)}")
    worst = 0.0
    for name, expected in want.items():
        found = got[name]
        if expected.dtype.kind != "f":
            _check_ids(name, found, expected, other)
            continue
        gap = np.abs(found.astype(np.float64) - expected)
        worst = max(worst, float(np.nanmax(gap)))
        if not all_close(found, expected, RTOL, ATOL, column_scale(expected)):
            raise ParityError(
                f"output {name!r} of the replay differs from {other} by "
                f"{np.nanmax(gap):.3g} (rtol {RTOL} of its scale, atol {ATOL}) for a request of "
                f"{len(expected)} rows"
            )
    return worst
