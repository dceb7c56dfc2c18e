"""Replays of a CUDA graph as a profiler saw them: when each kernel ran, and for which launch.

The events are Kineto's, as `torch.profiler` exports them. Tracing single nodes costs time, so the
span of a traced replay is longer than that of one that nobody watches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recreplay.runtime.errors import RecReplayError
from recreplay.tools.view.graph_marks import CATEGORY, Marks


@dataclass(frozen=True, slots=True)
class Kernel:
    """One node of a graph, in microseconds from the start of the replay's first node."""

    name: str
    start_us: float
    duration_us: float

    @property
    def end_us(self) -> float:
        return self.start_us + self.duration_us


def kernels_of_launches(
    events: Iterable[Mapping[str, Any]], marks: Marks
) -> tuple[tuple[Kernel, ...], ...]:
    """For each launch of a graph, what it ran, by start, in the replay of median length.

    One replay and not medians of every kernel, so that what followed each other still does.

    Raises:
        RecReplayError: no replay is among the events, or it is of another graph.
    """
    work = [event for event in events if event.get("cat") in CATEGORY.values()]
    replays = sorted(_replays(work), key=_length)
    if work and not replays:
        raise RecReplayError(
            "the profiler of this torch does not say which node of a graph a kernel was; that of "
            "2.13 does, and that of 2.11 does not; leave out --measure for modelled times"
        )
    if not replays:
        raise RecReplayError(
            "the profiler saw no replay of a CUDA graph; is CUPTI installed, and may this process "
            "use the GPU's counters?"
        )
    replay = sorted(replays[len(replays) // 2], key=lambda event: float(event["ts"]))
    nodes = [(int(event["args"]["graph node id"]), str(event["cat"])) for event in replay]
    found: list[list[Kernel]] = [[] for _ in range(marks.launches)]
    for event, launch in zip(replay, marks.assign(nodes), strict=True):
        start = round(event["ts"] - replay[0]["ts"], 3)
        found[launch].append(Kernel(str(event["name"]), start, round(event["dur"], 3)))
    return tuple(map(tuple, found))


def _length(replay: Sequence[Mapping[str, Any]]) -> float:
    end: float = max(event["ts"] + event["dur"] for event in replay)
    return end - float(min(event["ts"] for event in replay))


def span(kernels: Sequence[Kernel], otherwise: float) -> tuple[float, float]:
    """Start of the first and end of the last, in microseconds; `otherwise` if there are none."""
    if not kernels:
        return otherwise, otherwise
    return min(k.start_us for k in kernels), max(k.end_us for k in kernels)


def _replays(events: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The nodes of each graph launch: they share a correlation number."""
    launches: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        arguments = event.get("args", {})
        if arguments.get("graph node id"):
            launches[arguments["correlation"]].append(event)
    return list(launches.values())
