"""Per-kernel times: from a profiler's events to the launches of a plan, without a GPU.

The events are made here in the form that Kineto writes; what CUDA and CUPTI really report is for
`tests/gpu`.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import pytest

from recreplay.capture.schedule import observed
from recreplay.runtime.errors import RecReplayError
from recreplay.runtime.plan import plan_from
from recreplay.tools.captured_graph import CapturedGraph
from recreplay.tools.view import graph_marks
from recreplay.tools.view.graph_marks import Marks, in_order, torch_hooks
from recreplay.tools.view.kernels import Kernel, kernels_of_launches, span

UPLOAD, A, B, C, DOWNLOAD = range(5)
# Branch a of two kernels beside branch b of one, joined by c; times of one replay, by node number.
NODES = [
    (1, "gpu_memcpy", "copy in", 0.0, 2.0, UPLOAD),
    (2, "kernel", "lookup", 2.5, 3.0, A),
    (3, "kernel", "relu", 5.5, 1.0, A),
    (4, "kernel", "lookup", 2.5, 6.0, B),
    (5, "kernel", "gemm", 9.0, 4.0, C),
    (6, "gpu_memcpy", "copy out", 13.5, 1.5, DOWNLOAD),
]
ORDERED = Marks(5, {}, tuple((category, launch) for _, category, _, _, _, launch in NODES))
MARKED = replace(ORDERED, by_id={7 << 32 | node[0]: node[-1] for node in NODES}, in_order=())


def replayed(correlation: int, at: float, slower: float = 0.0) -> list[dict[str, Any]]:
    """One replay as Kineto writes it, in an order of its own; its gemm is `slower` by so much."""
    return [
        {
            "ph": "X",
            "cat": category,
            "name": name,
            "ts": at + start,
            "dur": duration + (slower if name == "gemm" else 0),
            "args": {"correlation": correlation, "graph node id": 7 << 32 | number},
        }
        for number, category, name, start, duration, _ in reversed(NODES)
    ]


OTHERS = [
    {"ph": "X", "cat": "kernel", "name": "eager", "ts": 1, "dur": 1, "args": {"correlation": 9}},
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 1, "dur": 9, "args": {}},
    {"ph": "M", "name": "process_name"},
]


@pytest.mark.parametrize("marks", [ORDERED, MARKED], ids=["by order", "by torch's marks"])
def test_kernels_go_to_the_launch_that_they_were_captured_for(marks: Marks) -> None:
    """The replay of median length is taken, whole."""
    events = [*OTHERS, *replayed(1, 100, 50), *replayed(2, 300, 3), *replayed(3, 500)]
    launches = kernels_of_launches(events, marks)
    assert launches[A] == (Kernel("lookup", 2.5, 3.0), Kernel("relu", 5.5, 1.0))
    assert launches[B] == (Kernel("lookup", 2.5, 6.0),)
    assert launches[C] == (Kernel("gemm", 9.0, 7.0),)
    assert [len(launch) for launch in launches] == [1, 2, 1, 1, 1]
    assert span(launches[A], 0.0) == (2.5, 6.5)
    assert span((), 4.0) == (4.0, 4.0)


def test_a_replay_that_is_not_the_graph_is_refused() -> None:
    """Where nodes cannot be marked, a lost event would shift all others."""
    seen = [event for event in replayed(1, 0.0) if event["name"] != "relu"]
    expected = "a replay of 2 gpu_memcpy and 3 kernel, but 2 gpu_memcpy and 4 kernel were captured"
    with pytest.raises(RecReplayError, match=re.escape(expected)):
        kernels_of_launches(seen, ORDERED)
    assert kernels_of_launches(seen, MARKED)[A] == (Kernel("lookup", 2.5, 3.0),)
    with pytest.raises(RecReplayError, match="saw no replay of a CUDA graph"):
        kernels_of_launches([], ORDERED)


def test_a_profiler_that_does_not_number_nodes_is_named() -> None:
    """As torch's up to 2.11; the kernels of no graph are no replay either."""
    seen = [event | {"args": {"correlation": 1}} for event in replayed(1, 0.0)]
    for events in (seen, OTHERS):
        with pytest.raises(
            RecReplayError, match=r"does not say which node .* 2\.11 does not; leav"
        ):
            kernels_of_launches(events, ORDERED)


def test_the_order_of_nodes_is_read_off_the_captured_graph() -> None:
    """Events and joins are nodes too, but no profiler reports them."""
    kinds = ["Memcpy", "Kernel", "EventRecord", "Kernel", "Empty", "Memset", "Memcpy"]
    graph = CapturedGraph(
        tuple(f"cudaGraphNodeType{kind}" for kind in kinds), (), ((0,), (1, 2, 3), (4, 5), (6,))
    )
    assert in_order(graph) == (
        ("gpu_memcpy", 0),
        ("kernel", 1),
        ("kernel", 1),
        ("gpu_memset", 2),
        ("gpu_memcpy", 3),
    )


def test_torch_has_the_hooks_that_are_used() -> None:
    """Of torch 2.13, which the constraints pin; without them, nodes are matched by order."""
    called = set(re.findall(r"\bhooks\.(\w+)\(", inspect.getsource(graph_marks)))
    hooks = torch_hooks()
    assert hooks is not None
    assert len(called) == 6
    assert [name for name in called if not callable(getattr(hooks, name, None))] == []


def test_what_was_seen_to_run_is_critical_back_from_what_ended_last() -> None:
    """b is what c waited for, though a is first in its list of waits."""
    plan = plan_from("feature", ["a", "b", "c"], [0, 1, 0], [(0, 2), (1, 2)])
    seen = observed(plan, [2.5, 2.5, 9.0], [4.0, 6.0, 4.0])
    assert seen.critical == (False, True, True)
    assert (seen.total, seen.serial, seen.starts) == (13.0, 14.0, (2.5, 2.5, 9.0))
