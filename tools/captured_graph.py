"""Read a captured CUDA graph back, and hold it against the plan that it was recorded from.

While a bucket is captured, the nodes that each launch adds are noted. Afterwards the edges say
which node runs before which, and that must be what the plan says: every data edge, and no order
that neither the data nor a shared stream asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from recreplay.runtime.devices.base import Launch
from recreplay.runtime.devices.cuda import CudaDevice, CudaRecording
from recreplay.runtime.devices.cuda_bindings import bindings, checked
from recreplay.runtime.plan import Plan


@dataclass(frozen=True)
class CapturedGraph:
    """Nodes by number, their types, edges between them, and the nodes of each launch in order.

    The first launch is the upload and the last is the download; those between are the plan's steps.
    """

    types: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    launches: tuple[tuple[int, ...], ...]

    def descendants(self) -> list[int]:
        """For each node, the set of nodes that run after it, as bits of a number."""
        after: list[list[int]] = [[] for _ in self.types]
        waiting = [0] * len(self.types)
        for a, b in self.edges:
            after[a].append(b)
            waiting[b] += 1
        order = [n for n, count in enumerate(waiting) if not count]
        for node in order:
            for user in after[node]:
                waiting[user] -= 1
                if not waiting[user]:
                    order.append(user)
        found = [0] * len(self.types)
        for node in reversed(order):
            for user in after[node]:
                found[node] |= found[user] | (1 << user)
        return found


def compare_with_plan(graph: CapturedGraph, plan: Plan) -> list[str]:
    """What the graph has otherwise than the plan; empty if it is the same order."""
    problems = []
    below = graph.descendants()
    steps = graph.launches[1:-1]
    if len(steps) != len(plan.steps):
        return [f"{len(steps)} launches were captured for {len(plan.steps)} steps"]
    planned = _happens_before(plan)
    for i, a in enumerate(plan.steps):
        for j, b in enumerate(plan.steps):
            if i == j or not steps[i] or not steps[j]:
                continue
            ordered = bool(below[steps[i][-1]] >> steps[j][0] & 1)
            if (planned[j] >> i & 1) and not ordered:
                problems.append(f"{b.name} must run after {a.name}, but the graph lets it race")
            if not (planned[j] >> i & 1) and ordered:
                problems.append(f"{b.name} runs after {a.name}, which the plan does not ask for")
    for refused in ("MemAlloc", "MemFree", "Host"):
        if any(refused in kind for kind in graph.types):
            problems.append(f"the graph holds a {refused} node")
    return problems


def _happens_before(plan: Plan) -> list[int]:
    """For each step, the steps that are certainly complete when it starts, as bits."""
    before: list[int] = []
    last: dict[int, int] = {}
    for i, step in enumerate(plan.steps):
        known = 0
        for other in [*step.waits, *([last[step.stream]] if step.stream in last else [])]:
            known |= before[other] | (1 << other)
        before.append(known)
        last[step.stream] = i
    return before


@dataclass
class Watch:
    """Node handles in the order of their making, and where each launch begins."""

    handles: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)


class WatchedRecording(CudaRecording):
    """A recording that notes which nodes each launch adds to the graph under capture."""

    def __init__(self, streams: list[torch.cuda.Stream], watch: Watch) -> None:
        super().__init__(streams)
        self.watch = watch
        self._current = streams[0]

    def launch(self, call: Launch) -> None:
        self.watch.starts.append(len(self.watch.handles))
        super().launch(call)
        known = set(self.watch.handles)
        self.watch.handles += [h for h in _nodes(_capturing(self._current)) if h not in known]


class WatchedDevice(CudaDevice):
    """A CUDA device that keeps a description of every graph it captures, in order of capture."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.graphs: list[CapturedGraph] = []
        self.watch = Watch()

    def new_recording(self, streams: list[torch.cuda.Stream], capturing: bool) -> CudaRecording:
        if not capturing:
            return super().new_recording(streams, capturing)
        self.watch = Watch()
        return self.capturing(streams)

    def capturing(self, streams: list[torch.cuda.Stream]) -> CudaRecording:
        """The recording of one capture; a device that marks nodes overrides this."""
        return WatchedRecording(streams, self.watch)

    def record(self, streams: int, issue: Any) -> Any:
        recorded = super().record(streams, issue)
        self.graphs.append(_describe(recorded.graph.raw_cuda_graph(), self.watch))
        return recorded


def _capturing(stream: torch.cuda.Stream) -> Any:
    """The graph that a capture on `stream` is drawing."""
    cudart = bindings()
    values = checked(cudart.cudaStreamGetCaptureInfo(stream.cuda_stream))
    return values[2]  # status, id, graph, ...


def _nodes(graph: Any) -> list[int]:
    cudart = bindings()
    _, count = checked(cudart.cudaGraphGetNodes(graph, 0))
    nodes, _ = checked(cudart.cudaGraphGetNodes(graph, count))
    return [int(node) for node in nodes]


def _describe(raw: int, watch: Watch) -> CapturedGraph:
    cudart = bindings()
    graph = cudart.cudaGraph_t(raw)
    _, count = checked(cudart.cudaGraphGetNodes(graph, 0))
    nodes, _ = checked(cudart.cudaGraphGetNodes(graph, count))
    index = {int(node): i for i, node in enumerate(nodes)}
    types = tuple(checked(cudart.cudaGraphNodeGetType(node))[0].name for node in nodes)
    sizes = checked(cudart.cudaGraphGetEdges(graph, 0))
    edges = checked(cudart.cudaGraphGetEdges(graph, sizes[-1]))
    pairs = tuple((index[int(a)], index[int(b)]) for a, b in zip(edges[0], edges[1], strict=True))
    ends = [*watch.starts[1:], len(watch.handles)]
    launches = tuple(
        tuple(index[h] for h in watch.handles[start:end])
        for start, end in zip(watch.starts, ends, strict=True)
    )
    return CapturedGraph(types, pairs, launches)
