"""When each step of a plan runs, given how long each takes: pure functions of the plan.

Side by side: a step starts when its stream is free and what it waits for is done, as on a device
whose streams do not slow each other down. Serial: one step after the other in issue order, as the
CPU replays. Observed: as a profiler saw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recreplay.runtime.plan import Plan


@dataclass(frozen=True, slots=True)
class Schedule:
    """Microseconds. `critical` are the steps that the end waits for, one after the other."""

    starts: tuple[float, ...]
    durations: tuple[float, ...]
    critical: tuple[bool, ...]
    total: float
    serial: float  # the sum of all durations: one stream

    @property
    def ends(self) -> tuple[float, ...]:
        return tuple(s + d for s, d in zip(self.starts, self.durations, strict=True))


def side_by_side(plan: Plan, durations: Sequence[float]) -> Schedule:
    """Streams run beside each other."""
    starts: list[float] = []
    ends: list[float] = []
    held_by: list[int | None] = []  # the step that each step's start had to wait for
    last: dict[int, int] = {}
    for i, (step, duration) in enumerate(zip(plan.steps, durations, strict=True)):
        before = [*step.waits, *([last[step.stream]] if step.stream in last else [])]
        latest = max(before, key=lambda b: ends[b], default=None)
        held_by.append(latest)
        starts.append(0.0 if latest is None else ends[latest])
        ends.append(starts[-1] + duration)
        last[step.stream] = i
    critical = _back_from_the_end(ends, held_by)
    return Schedule(tuple(starts), tuple(durations), critical, max(ends), float(sum(durations)))


def in_turn(plan: Plan, durations: Sequence[float]) -> Schedule:
    """One step after the other. The critical path is still the one that more streams would have."""
    starts = []
    clock = 0.0
    for duration in durations:
        starts.append(clock)
        clock += duration
    critical = side_by_side(plan, durations).critical
    return Schedule(tuple(starts), tuple(durations), critical, clock, clock)


def observed(plan: Plan, starts: Sequence[float], durations: Sequence[float]) -> Schedule:
    """As it was seen to run. Critical is what ended last of all that each critical step had to
    wait for."""
    ends = [start + duration for start, duration in zip(starts, durations, strict=True)]
    held_by: list[int | None] = []
    last: dict[int, int] = {}
    for i, step in enumerate(plan.steps):
        before = [*step.waits, *([last[step.stream]] if step.stream in last else [])]
        held_by.append(max(before, key=lambda b: ends[b], default=None))
        last[step.stream] = i
    return Schedule(
        tuple(starts),
        tuple(durations),
        _back_from_the_end(ends, held_by),
        max(ends),
        float(sum(durations)),
    )


def _back_from_the_end(ends: Sequence[float], held_by: Sequence[int | None]) -> tuple[bool, ...]:
    critical = [False] * len(ends)
    at: int | None = max(range(len(ends)), key=ends.__getitem__)
    while at is not None:
        critical[at] = True
        at = held_by[at]
    return tuple(critical)


def longest_path(plan: Plan, durations: Sequence[float]) -> float:
    """The least that the data dependencies alone allow, with as many streams as one likes."""
    producers: list[list[int]] = [[] for _ in plan.steps]
    for producer, consumer in plan.edges:
        producers[consumer].append(producer)
    ends: list[float] = []
    for i, duration in enumerate(durations):
        ends.append(duration + max((ends[p] for p in producers[i]), default=0.0))
    return max(ends)


def idle_share(plan: Plan, schedule: Schedule) -> float:
    """How much of the streams' time, from start to end, nothing runs in."""
    offered = plan.streams * schedule.total
    return 1.0 - schedule.serial / offered if offered else 0.0
