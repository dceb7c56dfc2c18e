"""Which launch of a plan each node of a captured CUDA graph came from, as a profiler names nodes.

torch 2.13 marks nodes while they are captured (`torch.cuda._graph_annotations`, private there), by
the number that the profiler reports as "graph node id". That needs cuda-bindings and a driver of
13.1 or later. Where it cannot be had, nodes are matched by the order of their making, in which
they are numbered; a replay of which the profiler saw more or fewer nodes is then refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from recreplay.runtime.devices.base import Launch
from recreplay.runtime.devices.cuda import CudaRecording
from recreplay.runtime.errors import RecReplayError
from recreplay.tools.captured_graph import CapturedGraph, WatchedDevice, WatchedRecording

# What a profiler reports of a replay, by the type of node.
CATEGORY = {"Kernel": "kernel", "Memcpy": "gpu_memcpy", "Memset": "gpu_memset"}


@dataclass(frozen=True)
class Marks:
    """Launches are numbered from 0, the upload; the last is the download."""

    launches: int
    by_id: Mapping[int, int]  # "graph node id" -> launch; empty where nodes could not be marked
    in_order: tuple[tuple[str, int], ...]  # category and launch of each node, as they were made

    def assign(self, nodes: Sequence[tuple[int, str]]) -> list[int]:
        """The launch of each `(graph node id, category)` of one replay.

        Raises:
            RecReplayError: these are not the nodes that were captured.
        """
        if nodes and all(number in self.by_id for number, _ in nodes):
            return [self.by_id[number] for number, _ in nodes]
        order = sorted(range(len(nodes)), key=lambda i: nodes[i][0])
        seen = [nodes[i][1] for i in order]
        made = [category for category, _ in self.in_order]
        if seen != made:
            raise RecReplayError(
                f"the profiler saw a replay of {_count(seen)}, but {_count(made)} were captured, "
                "and this torch and driver cannot mark nodes: per-kernel times need torch 2.13 "
                "with cuda-bindings and a driver of 13.1 or later"
            )
        found = [0] * len(nodes)
        for at, (_, launch) in zip(order, self.in_order, strict=True):
            found[at] = launch
        return found


def in_order(graph: CapturedGraph) -> tuple[tuple[str, int], ...]:
    """The nodes of a graph that a profiler reports, as they were made: category and launch."""
    working = []
    for launch, nodes in enumerate(graph.launches):
        for node in nodes:
            kind = graph.types[node].removeprefix("cudaGraphNodeType")
            if kind in CATEGORY:
                working.append((CATEGORY[kind], launch))
    return tuple(working)


class MarkedDevice(WatchedDevice):
    """A CUDA device that marks what it captures. `marks` are those of each graph, in order."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.marks: list[Marks] = []

    def capturing(self, streams: list[torch.cuda.Stream]) -> CudaRecording:
        return _MarkedRecording(streams, self.watch)

    def record(self, streams: int, issue: Any) -> Any:
        hooks = torch_hooks()
        if hooks is not None:
            hooks.clear_kernel_annotations()
            hooks.enable_annotations()
        try:
            recorded = super().record(streams, issue)
        finally:
            if hooks is not None:
                hooks.disable_annotations()
        marked: dict[int, int] = {}
        if hooks is not None:
            hooks.resolve_pending_annotations()
            hooks.remap_to_exec_graph(recorded.graph)
            for number, given in hooks.get_kernel_annotations().items():
                marked[number] = given[-1]["launch"]
        graph = self.graphs[-1]
        self.marks.append(Marks(len(graph.launches), marked, in_order(graph)))
        return recorded


class _MarkedRecording(WatchedRecording):
    def launch(self, call: Launch) -> None:
        with _mark(len(self.watch.starts)):
            super().launch(call)


def _mark(launch: int) -> AbstractContextManager[object]:
    hooks = torch_hooks()
    if hooks is None:
        return nullcontext()
    mark: Callable[[object], AbstractContextManager[object]] = hooks.mark_kernels
    return mark({"launch": launch})


def torch_hooks() -> Any:
    """torch's module of hooks, or None where this torch has none with these names."""
    try:
        hooks = import_module("torch.cuda._graph_annotations")
    except ImportError:
        return None
    needed = (
        "clear_kernel_annotations",
        "disable_annotations",
        "enable_annotations",
        "get_kernel_annotations",
        "mark_kernels",
        "remap_to_exec_graph",
        "resolve_pending_annotations",
    )
    return hooks if all(hasattr(hooks, name) for name in needed) else None


def _count(categories: Sequence[str]) -> str:
    named = sorted(set(categories))
    return " and ".join(f"{categories.count(name)} {name}" for name in named) or "nothing"
