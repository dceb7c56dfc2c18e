"""Funnels: several models in a row, each of which ranks what the one before let through.

A small model scores all candidates of a request, and a large one only the best of them, as in
RecPipe (arXiv 2105.08820). Stages are runtimes of their own, so that each has its buckets, lanes
and device; between two of them the host keeps the best rows of a request and gathers their inputs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from recreplay.runtime.engine import Runtime
from recreplay.runtime.errors import FunnelError, IdRangeError, InputError, RuntimeClosedError
from recreplay.runtime.mixed import Divided, MixedChecker, Order
from recreplay.runtime.mixed_rows import as_given, pick_rows
from recreplay.runtime.offload import Offload
from recreplay.runtime.promises import cancel_with, new_future
from recreplay.runtime.spec import InputSpec
from recreplay.runtime.top_rows import best_first, top_rows

Array = np.ndarray[Any, Any]
Score = Callable[[Mapping[str, Array]], Array]


@dataclass(frozen=True, slots=True)
class Stage:
    """A loaded model, on one device or two, and how many rows of a request it lets through (the
    last stage: how many the answer has; None: all).

    `score`: what ranks rows, the higher the better: an output `[n]` or `[n, 1]` by name, or a
    function of all outputs that gives `[n]`. It need not be said where there is one output.
    """

    runtime: Runtime | Offload
    keep: int | None = None
    score: str | Score | None = None


class Ranking(NamedTuple):
    """`rows`, int64 `[k]`, are rows of the request, best first; `scores` `[k]` and the `outputs`
    `[k, ...]` are the last stage's for them."""

    rows: Array
    scores: Array
    outputs: dict[str, Array]


class _Request(NamedTuple):
    """What is left of a request: `rows` are those of the request, None where all are."""

    values: Divided
    n: int
    rows: Array | None


class Funnel:
    """Ranks the candidates of requests by several models. Thread-safe.

        with (
            Runtime.load("small.rr") as small,
            Runtime.load("large.rr") as large,
            Funnel([Stage(small, keep=512), Stage(large, keep=64)]) as funnel,
        ):
            ranking = funnel.run(inputs)

    A request has the inputs of all stages, by name; those of the same name are the same. A stage
    that would let a request through whole is left out, but for the last. Rows of equal scores are
    ranked in the order of the request, and NaN behind everything.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        """Raises FunnelError where the stages do not go together."""
        if not stages:
            raise FunnelError("a funnel has one stage or more; got none")
        self.stages = tuple(stages)
        self._scores = [_score_of(stage, at) for at, stage in enumerate(stages)]
        _check_keeps(stages)
        manifests = [stage.runtime.manifest for stage in stages]
        self.inputs = _union(stages)
        users = [m.users for m in manifests if m.users]
        union = replace(manifests[0], inputs=self.inputs, users=min(users, default=0))
        self._order = Order(union)
        bounds = [bound for m in manifests for bound in m.bounds]
        clamps = any(stage.runtime.check == "clamp" for stage in stages)
        self._checker = MixedChecker(self._order, bounds, "clamp" if clamps else "error")
        places = {spec.name: at for at, spec in enumerate(self._order.specs)}
        self._places = [[(s.name, places[s.name]) for s in m.inputs] for m in manifests]
        self._lock = threading.Lock()
        self._pending: set[Future[Ranking]] = set()
        self._closed = False
        self._requests = 0
        self._ranked = [0] * len(stages)
        self._left_out = [0] * len(stages)

    def run(self, inputs: Mapping[str, Any]) -> Ranking:
        """Rank one request on the caller's thread. Raises what `Runtime.run` of a stage does."""
        request = self._checked(inputs)
        at = self._next(0, request.n)
        while True:
            try:
                outputs = self.stages[at].runtime.run(self._mine(at, request))
            except InputError as error:
                raise self._told(at, request, error)  # noqa: B904 - it says itself what it is from
            if at + 1 == len(self.stages):
                return self._ranking(request, outputs)
            request = self._passed(at, request, outputs)
            at = self._next(at + 1, request.n)

    def submit(
        self, inputs: Mapping[str, Any], *, deadline_us: int | None = None
    ) -> Future[Ranking]:
        """Rank one request by what the stages queue, pack and cut (`Runtime.submit`).

        `deadline_us`: how long it may take until its last stage begins. Raises Overloaded where
        the first queue is full; the future raises it for the others, and whatever `run` would.
        """
        answer: Future[Ranking] = new_future()
        due = None if deadline_us is None else time.monotonic() + deadline_us / 1e6
        try:
            request = self._checked(inputs)
        except InputError as error:
            answer.set_exception(error)
            return answer
        with self._lock:
            self._pending.add(answer)
        answer.add_done_callback(self._forget)
        try:
            self._submit(answer, self._next(0, request.n), request, due)
        except BaseException:
            self._forget(answer)
            raise
        return answer

    async def arun(self, inputs: Mapping[str, Any], *, deadline_us: int | None = None) -> Ranking:
        """`submit` for asyncio."""
        return await asyncio.wrap_future(self.submit(inputs, deadline_us=deadline_us))

    def stats(self) -> dict[str, Any]:
        """Counters: requests, and for each stage the rows it ranked and the requests that it was
        left out of."""
        with self._lock:
            stages = zip(self._ranked, self._left_out, strict=True)
            return {
                "requests": self._requests,
                "stages": [{"rows": rows, "left_out": left} for rows, left in stages],
            }

    def close(self) -> None:
        """Answer what was submitted. The runtimes stay as they are. Not for callbacks of futures,
        which run on the threads that are waited for."""
        with self._lock:
            self._closed = True
            pending = list(self._pending)
        wait(pending)

    def __enter__(self) -> Funnel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _forget(self, answer: Future[Ranking]) -> None:
        with self._lock:
            self._pending.discard(answer)

    def _checked(self, inputs: Mapping[str, Any]) -> _Request:
        values, n = self._checker.check(inputs)
        if not isinstance(values, Divided):
            values, n = self._checker.convert(values)
        with self._lock:
            if self._closed:
                raise RuntimeClosedError("this Funnel was closed")
            self._requests += 1
        return _Request(values, n, None)

    def _next(self, at: int, n: int) -> int:
        """The stage that ranks `n` rows, `at` or a later one."""
        last = len(self.stages) - 1
        begun = at
        while at < last and n <= (self.stages[at].keep or 0):
            at += 1
        with self._lock:
            for left in range(begun, at):
                self._left_out[left] += 1
            self._ranked[at] += n
        return at

    def _mine(self, at: int, request: _Request) -> dict[str, Array]:
        given = as_given(self._order, request.values)
        return {name: given[place] for name, place in self._places[at]}

    def _submit(
        self, answer: Future[Ranking], at: int, request: _Request, due: float | None
    ) -> None:
        left = None if due is None else max(1, round((due - time.monotonic()) * 1e6))
        asked = self.stages[at].runtime.submit(self._mine(at, request), deadline_us=left)

        def answered(asked: Future[dict[str, Array]]) -> None:
            if answer.cancelled():
                answer.set_running_or_notify_cancel()  # who waits for all of several waits for this
                return
            try:
                outputs = asked.result()
                if at + 1 < len(self.stages):
                    passed = self._passed(at, request, outputs)
                    self._submit(answer, self._next(at + 1, passed.n), passed, due)
                    return
                ranking = self._ranking(request, outputs)
            except BaseException as error:
                if isinstance(error, InputError):
                    error = self._told(at, request, error)
                if answer.set_running_or_notify_cancel():
                    answer.set_exception(error)
                return
            if answer.set_running_or_notify_cancel():
                answer.set_result(ranking)

        asked.add_done_callback(answered)
        cancel_with(answer, asked)

    def _passed(self, at: int, request: _Request, outputs: Mapping[str, Array]) -> _Request:
        """What the next stage ranks, in the order of the request."""
        keep = self.stages[at].keep
        assert keep is not None
        picked = top_rows(self._scored(at, request, outputs), keep)
        rows = picked if request.rows is None else request.rows[picked]
        return _Request(pick_rows(self._order, request.values, picked), len(picked), rows)

    def _ranking(self, request: _Request, outputs: Mapping[str, Array]) -> Ranking:
        scores = self._scored(len(self.stages) - 1, request, outputs)
        best = best_first(scores, self.stages[-1].keep)
        rows = best if request.rows is None else request.rows[best]
        return Ranking(rows, scores[best], {name: array[best] for name, array in outputs.items()})

    def _scored(self, at: int, request: _Request, outputs: Mapping[str, Array]) -> Array:
        scores = np.asarray(self._scores[at](outputs))
        if scores.shape != (request.n,):
            raise FunnelError(
                f"the score of stage {at + 1} gave shape {scores.shape}; expected ({request.n},), "
                "a number for each row"
            )
        return scores

    def _told(self, at: int, request: _Request, error: InputError) -> InputError:
        """The error of a stage, which knows no other rows than its own."""
        if request.rows is None:
            return error
        which = f"stage {at + 1} of {len(self.stages)}"
        told: InputError
        if isinstance(error, IdRangeError) and error.row is not None:
            row = int(request.rows[error.row])
            told = IdRangeError(f"{error}; that is row {row} of the request, in {which}", row)
        else:
            told = type(error)(f"{error}; of the {request.n} rows that reached {which}")
        told.__cause__ = error
        return told


def _score_of(stage: Stage, at: int) -> Score:
    """What gives the scores `[n]` of a stage."""
    if callable(stage.score):
        return stage.score
    outputs = {spec.name: spec for spec in stage.runtime.manifest.outputs}
    name = stage.score if stage.score is not None or len(outputs) > 1 else next(iter(outputs))
    if name not in outputs:
        asked = "says no score" if name is None else f"is to be ranked by {name!r}"
        raise FunnelError(f"stage {at + 1} {asked}; its outputs are {', '.join(outputs)}")
    row = outputs[name].row
    if row not in ((), (1,)):
        raise FunnelError(
            f"stage {at + 1} is to be ranked by {name!r}, of which a row has shape {row}; expected "
            "one number a row; give a function of the outputs as score"
        )
    return lambda results: results[name].reshape(-1)


def _check_keeps(stages: Sequence[Stage]) -> None:
    before: int | None = None
    for at, stage in enumerate(stages):
        keep = stage.keep
        if keep is None and at + 1 == len(stages):
            return
        if type(keep) is not int or keep < 1:
            raise FunnelError(
                f"stage {at + 1} keeps {keep!r} rows; expected a whole number, 1 or more"
            )
        if before is not None and keep > before:
            raise FunnelError(
                f"stage {at + 1} keeps {keep} rows, and the stage before it {before}; expected no "
                "more than that"
            )
        before = keep


def _union(stages: Sequence[Stage]) -> tuple[InputSpec, ...]:
    """The inputs of all stages, each once. Capacities are of a stage alone."""
    found: dict[str, InputSpec] = {}
    for at, stage in enumerate(stages):
        for spec in stage.runtime.manifest.inputs:
            known = found.setdefault(spec.name, spec)
            if replace(known, capacity=spec.capacity) != spec:
                raise FunnelError(
                    f"input {spec.name!r} is {_said(spec)} in stage {at + 1} and {_said(known)} in "
                    "one before it; inputs of the same name are the same: capture them alike, or "
                    "rename one"
                )
    return tuple(found.values())


def _said(spec: InputSpec) -> str:
    kind = {"rows": "", "values": f", divided by {spec.along!r}"}.get(spec.kind, f", {spec.kind}")
    return f"{spec.describe()}{kind}{' of users' if spec.user else ''}"
