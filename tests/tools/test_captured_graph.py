"""Holding a captured graph against its plan: the comparison itself, on graphs made by hand."""

from recreplay.runtime.plan import Plan, plan_from
from recreplay.tools.captured_graph import CapturedGraph, compare_with_plan


def diamond() -> Plan:
    """Two branches on two streams, joined by a third step on the main one."""
    return plan_from("feature", ["a", "b", "c"], [0, 1, 0], [(0, 2), (1, 2)])


def graph(edges: list[tuple[int, int]], types: str = "MKKKM") -> CapturedGraph:
    """Nodes 0 upload, 1 a, 2 b, 3 c, 4 download."""
    names = {"M": "cudaGraphNodeTypeMemcpy", "K": "cudaGraphNodeTypeKernel"}
    names["A"] = "cudaGraphNodeTypeMemAlloc"
    return CapturedGraph(
        tuple(names[t] for t in types), tuple(edges), ((0,), (1,), (2,), (3,), (4,))
    )


FORKED = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)]


def test_a_graph_with_the_forks_of_the_plan_has_no_problems() -> None:
    """Two parallel branches between upload and join."""
    assert compare_with_plan(graph(FORKED), diamond()) == []


def test_a_missing_edge_is_a_race() -> None:
    """The join no longer waits for the second branch."""
    problems = compare_with_plan(graph([e for e in FORKED if e != (2, 3)]), diamond())
    assert problems == ["c must run after b, but the graph lets it race"]


def test_an_order_that_the_plan_does_not_ask_for_is_reported() -> None:
    """One branch after the other, as false dependencies make it."""
    problems = compare_with_plan(graph([*FORKED, (1, 2)]), diamond())
    assert problems == ["b runs after a, which the plan does not ask for"]


def test_an_allocation_inside_the_graph_is_reported() -> None:
    """Memory nodes mean that a value was not where the plan put it."""
    problems = compare_with_plan(graph(FORKED, "MAKKM"), diamond())
    assert problems == ["the graph holds a MemAlloc node"]


def test_launches_that_are_not_the_steps_are_reported() -> None:
    """A graph of another plan."""
    other = plan_from("single", ["a", "b"], [0, 0], [(0, 1)])
    assert compare_with_plan(graph(FORKED), other) == ["3 launches were captured for 2 steps"]
