"""The plan: which step runs in which stream, in which order, waiting for what; and the proof.

A plan is pure data, written by capture and read by the runtime. A step is an operator or a
segment: the ordering rules are the same for both. Two orders are implicit and never appear in
`Step.waits`: every side stream waits for the fork event, recorded on the main stream before its
first step, and the main stream joins every side stream after its last step.

Whether a plan is correct is decided here by vector clocks (Fidge 1988, Mattern 1989), with no
GPU: the clock of a step holds, per stream, how many steps of that stream are certainly complete
when the step is. Because a stream is executed in order, a count per stream describes the whole
set of completed steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from recreplay.runtime.errors import RecReplayError


class PlanError(RecReplayError, ValueError):
    """A plan that is malformed, races, deadlocks or waits for nothing."""


@dataclass(frozen=True, slots=True)
class Step:
    name: str  # of the operator or segment; unique in its plan
    stream: int  # 0 is the main stream: capture starts and ends there
    waits: tuple[int, ...] = ()  # positions of the steps whose completion event this one waits for


@dataclass(frozen=True, slots=True)
class Plan:
    strategy: str
    steps: tuple[Step, ...]  # in issue order
    edges: tuple[tuple[int, int], ...]  # data dependencies (producer, consumer), positions in steps

    @property
    def streams(self) -> int:
        """How many streams the plan uses; they are numbered 0 to `streams - 1`."""
        return len({step.stream for step in self.steps})

    def to_json(self) -> dict[str, Any]:
        return {
            "strategy": self.strategy,
            "steps": [
                {"name": step.name, "stream": step.stream, "waits": list(step.waits)}
                for step in self.steps
            ],
            "edges": [list(edge) for edge in self.edges],
        }

    @classmethod
    def from_json(cls, data: object) -> Plan:
        """Read what `to_json` wrote. A plan that is malformed or not ordered is refused."""
        fields = _object(data, "plan", ("strategy", "steps", "edges"))
        steps = []
        for i, item in enumerate(_array(fields["steps"], "plan.steps")):
            where = f"plan.steps[{i}]"
            step = _object(item, where, ("name", "stream", "waits"))
            name = _string(step["name"], f"{where}.name")
            stream = _integer(step["stream"], f"{where}.stream")
            steps.append(Step(name, stream, _integers(step["waits"], f"{where}.waits")))
        edges = []
        for i, item in enumerate(_array(fields["edges"], "plan.edges")):
            edge = _integers(item, f"plan.edges[{i}]")
            if len(edge) != 2:
                raise PlanError(f"plan.edges[{i}]: expected 2 positions, got {len(edge)}")
            edges.append((edge[0], edge[1]))
        plan = cls(_string(fields["strategy"], "plan.strategy"), tuple(steps), tuple(edges))
        check_plan(plan)
        return plan


def plan_from(
    strategy: str,
    names: Sequence[str],
    streams: Sequence[int],
    edges: Collection[tuple[int, int]],
) -> Plan:
    """Build a plan from names and stream numbers in issue order, with the fewest waits."""
    if len(names) != len(streams):
        raise PlanError(f"{len(names)} names but {len(streams)} stream numbers")
    unique = tuple(sorted(set(edges)))
    waits = minimal_waits(streams, unique)
    steps = tuple(Step(n, s, w) for n, s, w in zip(names, streams, waits, strict=True))
    return Plan(strategy, steps, unique)


def minimal_waits(
    streams: Sequence[int], edges: Collection[tuple[int, int]]
) -> tuple[tuple[int, ...], ...]:
    """The waits that `edges` need, given the stream of each step in issue order.

    A dependency is dropped when it is implied by stream order, by an earlier wait in the same
    stream or by another wait of the same step. Each wait that is left is the only thing that
    orders some data edge, so none can be removed.
    """
    producers: list[set[int]] = [set() for _ in streams]
    for producer, consumer in edges:
        if not 0 <= producer < consumer < len(streams):
            raise PlanError(
                f"edge ({producer}, {consumer}) does not run forward within {len(streams)} steps"
            )
        producers[consumer].add(producer)
    clocks = _Clocks(streams)
    waits = []
    for step in range(len(streams)):
        clock = clocks.before(step)
        kept = []
        # What implies a wait is issued after its target, so from latest to earliest one look at
        # the clock is enough, and only maximal targets are kept.
        for producer in sorted(producers[step], reverse=True):
            if not clocks.covers(clock, producer):
                clock = clocks.merge(clock, producer)
                kept.append(producer)
        clocks.complete(step, clock)
        waits.append(tuple(reversed(kept)))
    return tuple(waits)


def check_plan(plan: Plan) -> None:
    """Prove that the plan neither races nor deadlocks nor waits needlessly, or raise PlanError."""
    _check_numbers(plan)
    steps = plan.steps
    producers: list[list[int]] = [[] for _ in steps]
    for producer, consumer in plan.edges:
        producers[consumer].append(producer)
    clocks = _Clocks([step.stream for step in steps])
    for i, step in enumerate(steps):
        before = clocks.before(i)
        for wait in step.waits:
            others = (w for w in step.waits if w != wait)
            if clocks.covers(before, wait) or any(clocks.orders(wait, w) for w in others):
                raise PlanError(
                    f"step {step.name!r} waits for {steps[wait].name!r} needlessly: "
                    "stream order and the other waits already imply it"
                )
        for wait in step.waits:
            before = clocks.merge(before, wait)
        for producer in producers[i]:
            if not clocks.covers(before, producer):
                raise PlanError(
                    f"edge {steps[producer].name!r} -> {step.name!r} is not ordered: stream "
                    f"{step.stream} does not wait for stream {steps[producer].stream}"
                )
        clocks.complete(i, before)


def _check_numbers(plan: Plan) -> None:
    """Everything that can be said step by step: streams, waits and edges point where they may.

    A wait for an earlier step and an edge that runs forward make the issue order a topological
    order of both, and a host that issues in such an order cannot deadlock the device.
    """
    steps = plan.steps
    used = sorted({step.stream for step in steps})
    if used != list(range(len(used))):
        raise PlanError(
            f"streams are numbered {', '.join(map(str, used))}: expected 0 to {len(used) - 1}"
        )
    seen: set[str] = set()
    for i, step in enumerate(steps):
        if step.name in seen:
            raise PlanError(f"two steps are named {step.name!r}")
        seen.add(step.name)
        for wait in step.waits:
            if not 0 <= wait < len(steps):
                raise PlanError(
                    f"step {step.name!r} waits for position {wait}: the plan has {len(steps)} steps"
                )
            if wait >= i:
                raise PlanError(
                    f"step {step.name!r} waits for {steps[wait].name!r}, which is not issued "
                    "before it"
                )
            if steps[wait].stream == step.stream:
                raise PlanError(
                    f"step {step.name!r} waits for {steps[wait].name!r} on its own stream "
                    f"{step.stream}"
                )
        if len(set(step.waits)) != len(step.waits):
            raise PlanError(f"step {step.name!r} waits for the same step twice")
    for producer, consumer in plan.edges:
        if not (0 <= producer < len(steps) and 0 <= consumer < len(steps)):
            raise PlanError(
                f"edge ({producer}, {consumer}) points outside the plan of {len(steps)} steps"
            )
        if producer >= consumer:
            raise PlanError(
                f"edge {steps[producer].name!r} -> {steps[consumer].name!r} runs against the "
                "issue order"
            )


class _Clocks:
    """Vector clocks of the steps, filled in issue order."""

    def __init__(self, streams: Sequence[int]) -> None:
        lanes = {stream: lane for lane, stream in enumerate(dict.fromkeys(streams))}
        self._lane = [lanes[stream] for stream in streams]
        self._rank: list[int] = []  # place of a step in its own stream, from 1
        self._previous: list[int | None] = []  # the step before it in its own stream
        last: list[int | None] = [None] * len(lanes)
        for step, lane in enumerate(self._lane):
            previous = last[lane]
            self._rank.append(1 if previous is None else self._rank[previous] + 1)
            self._previous.append(previous)
            last[lane] = step
        self._start = [0] * len(lanes)
        self._clock: list[list[int]] = []

    def before(self, step: int) -> list[int]:
        """What is complete when the step is reached by its own stream, before it waits."""
        previous = self._previous[step]
        return self._start if previous is None else self._clock[previous]

    def merge(self, clock: list[int], wait: int) -> list[int]:
        return list(map(max, clock, self._clock[wait]))

    def complete(self, step: int, clock: list[int]) -> None:
        own = clock.copy()
        own[self._lane[step]] = self._rank[step]
        self._clock.append(own)

    def covers(self, clock: list[int], step: int) -> bool:
        return clock[self._lane[step]] >= self._rank[step]

    def orders(self, earlier: int, later: int) -> bool:
        return self.covers(self._clock[later], earlier)


def _object(value: object, where: str, keys: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise PlanError(f"{where}: expected an object, got {type(value).__name__}")
    for key in keys:
        if key not in value:
            raise PlanError(f"{where}: key {key!r} is missing")
    for key in value:
        if key not in keys:
            raise PlanError(f"{where}: key {key!r} is not known")
    return value


def _array(value: object, where: str) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise PlanError(f"{where}: expected a list, got {type(value).__name__}")
    return value


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise PlanError(f"{where}: expected a string, got {type(value).__name__}")
    return value


def _integer(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanError(f"{where}: expected an integer, got {type(value).__name__}")
    return value


def _integers(value: object, where: str) -> tuple[int, ...]:
    return tuple(_integer(v, f"{where}[{i}]") for i, v in enumerate(_array(value, where)))
