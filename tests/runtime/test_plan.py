"""The plan and the proof of its ordering."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recreplay.runtime.plan import Plan, PlanError, Step, check_plan, minimal_waits, plan_from

UNTIMED = settings(deadline=None)  # cores are shared: one slow example is no failure

# a on the main stream feeds b and c on side streams; d on the main stream joins them.
DIAMOND = Plan(
    "matching",
    (Step("a", 0), Step("b", 1, (0,)), Step("c", 2, (0,)), Step("d", 0, (1, 2))),
    ((0, 1), (0, 2), (1, 3), (2, 3)),
)


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """Stream numbers in issue order, and edges that run forward."""
    streams = draw(st.lists(st.integers(0, 4), min_size=2, max_size=25))
    numbers = {stream: i for i, stream in enumerate(dict.fromkeys(streams))}
    n = len(streams)
    forward = st.integers(0, n - 2).flatmap(
        lambda p: st.tuples(st.just(p), st.integers(p + 1, n - 1))
    )
    edges = draw(st.lists(forward, max_size=2 * n, unique=True))
    return [numbers[stream] for stream in streams], edges


def planned(program: tuple[list[int], list[tuple[int, int]]]) -> Plan:
    streams, edges = program
    return plan_from("test", [f"s{i}" for i in range(len(streams))], streams, edges)


def completed_before(plan: Plan) -> list[set[int]]:
    """For each step, the steps certainly complete when it starts: by plain graph search."""
    before: list[set[int]] = []
    for i, step in enumerate(plan.steps):
        direct = [j for j in range(i) if plan.steps[j].stream == step.stream]
        before.append(set())
        for j in (*direct, *step.waits):
            before[i] |= before[j] | {j}
    return before


def with_step(plan: Plan, position: int, **changes: Any) -> Plan:
    steps = list(plan.steps)
    steps[position] = replace(steps[position], **changes)
    return replace(plan, steps=tuple(steps))


def test_diamond_passes_and_counts_streams() -> None:
    check_plan(DIAMOND)
    assert DIAMOND.streams == 3
    assert plan_from("matching", "abcd", [0, 1, 2, 0], DIAMOND.edges) == DIAMOND


def test_empty_plan_is_ordered() -> None:
    check_plan(Plan("single", (), ()))


@pytest.mark.parametrize(
    ("streams", "edges", "waits"),
    [
        ([0, 0, 0], [(0, 1), (0, 2)], [(), (), ()]),  # stream order
        ([0, 0, 1], [(0, 2), (1, 2)], [(), (), (1,)]),  # the latest of a stream
        ([0, 1, 1], [(0, 1), (0, 2)], [(), (0,), ()]),  # an earlier wait of the same stream
        ([0, 1, 2], [(0, 1), (0, 2), (1, 2)], [(), (0,), (1,)]),  # through another wait
        ([0, 1, 2], [(0, 2), (1, 2)], [(), (), (0, 1)]),  # both are needed
        ([5, 9], [(0, 1)], [(), (0,)]),  # any numbers name streams
    ],
)
def test_minimal_waits(
    streams: list[int], edges: list[tuple[int, int]], waits: list[tuple[int, ...]]
) -> None:
    assert minimal_waits(streams, edges) == tuple(waits)


def test_minimal_waits_refuses_backward_edges() -> None:
    with pytest.raises(PlanError, match=r"^edge \(1, 0\) does not run forward within 2 steps$"):
        minimal_waits([0, 1], [(1, 0)])


def test_plan_from_needs_a_stream_per_name() -> None:
    with pytest.raises(PlanError, match=r"^2 names but 1 stream numbers$"):
        plan_from("single", ["a", "b"], [0], [])


@UNTIMED
@given(programs())
def test_pruned_plans_are_ordered(program: tuple[list[int], list[tuple[int, int]]]) -> None:
    plan = planned(program)
    check_plan(plan)
    before = completed_before(plan)
    assert all(producer in before[consumer] for producer, consumer in plan.edges)


@UNTIMED
@given(programs())
def test_each_wait_is_needed(program: tuple[list[int], list[tuple[int, int]]]) -> None:
    plan = planned(program)
    for i, step in enumerate(plan.steps):
        for wait in step.waits:
            rest = tuple(w for w in step.waits if w != wait)
            with pytest.raises(PlanError, match="is not ordered"):
                check_plan(with_step(plan, i, waits=rest))


@UNTIMED
@given(programs())
def test_each_implied_wait_is_caught(program: tuple[list[int], list[tuple[int, int]]]) -> None:
    plan = planned(program)
    before = completed_before(plan)
    for i, step in enumerate(plan.steps):
        for implied in before[i] - set(step.waits):
            if plan.steps[implied].stream != step.stream:
                named = f"^step 's{i}' waits for 's{implied}' needlessly"
                with pytest.raises(PlanError, match=named):
                    check_plan(with_step(plan, i, waits=(*step.waits, implied)))


@UNTIMED
@given(programs())
def test_swapped_order_is_caught(program: tuple[list[int], list[tuple[int, int]]]) -> None:
    plan = planned(program)
    for producer, consumer in plan.edges:
        place = list(range(len(plan.steps)))
        place[producer], place[consumer] = consumer, producer
        swapped = Plan(
            plan.strategy,
            tuple(
                replace(plan.steps[p], waits=tuple(place[w] for w in plan.steps[p].waits))
                for p in place
            ),
            tuple((place[p], place[c]) for p, c in plan.edges),
        )
        with pytest.raises(PlanError, match=r"not issued before it|runs against the issue order"):
            check_plan(swapped)


@UNTIMED
@given(programs())
def test_json_round_trip(program: tuple[list[int], list[tuple[int, int]]]) -> None:
    plan = planned(program)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            with_step(DIAMOND, 3, waits=(2,)),
            "edge 'b' -> 'd' is not ordered: stream 0 does not wait for stream 1",
        ),
        (
            with_step(DIAMOND, 3, waits=(0, 1, 2)),
            "step 'd' waits for 'a' on its own stream 0",
        ),
        (
            with_step(DIAMOND, 2, waits=(0, 1)),
            "step 'c' waits for 'a' needlessly: stream order and the other waits already imply it",
        ),
        (
            with_step(DIAMOND, 1, waits=(2,)),
            "step 'b' waits for 'c', which is not issued before it",
        ),
        (
            with_step(DIAMOND, 1, waits=(1,)),
            "step 'b' waits for 'b', which is not issued before it",
        ),
        (
            with_step(DIAMOND, 1, waits=(-1,)),
            "step 'b' waits for position -1: the plan has 4 steps",
        ),
        (with_step(DIAMOND, 1, waits=(0, 0)), "step 'b' waits for the same step twice"),
        (with_step(DIAMOND, 1, stream=3), "streams are numbered 0, 2, 3: expected 0 to 2"),
        (with_step(DIAMOND, 1, stream=-1), "streams are numbered -1, 0, 2: expected 0 to 2"),
        (with_step(DIAMOND, 1, name="c"), "two steps are named 'c'"),
        (
            replace(DIAMOND, edges=((3, 1),)),
            "edge 'd' -> 'b' runs against the issue order",
        ),
        (replace(DIAMOND, edges=((0, 4),)), "edge (0, 4) points outside the plan of 4 steps"),
    ],
)
def test_faults_are_named(plan: Plan, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_plan(plan)
    assert str(caught.value) == message
    with pytest.raises(PlanError):
        Plan.from_json(plan.to_json())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), [], "plan: expected an object, got list"),
        (("strategy",), 3, "plan.strategy: expected a string, got int"),
        (("steps",), "abc", "plan.steps: expected a list, got str"),
        (("steps", 1), "b", "plan.steps[1]: expected an object, got str"),
        (("steps", 1), {"name": "b", "stream": 0}, "plan.steps[1]: key 'waits' is missing"),
        (("steps", 1, "event"), 7, "plan.steps[1]: key 'event' is not known"),
        (("steps", 1, "stream"), True, "plan.steps[1].stream: expected an integer, got bool"),
        (("steps", 1, "waits"), [0.0], "plan.steps[1].waits[0]: expected an integer, got float"),
        (("edges", 2), [0, 1, 2], "plan.edges[2]: expected 2 positions, got 3"),
    ],
)
def test_malformed_json_is_named(path: tuple[str | int, ...], value: Any, message: str) -> None:
    data: Any = DIAMOND.to_json()
    if path:
        target = data
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
    else:
        data = value
    with pytest.raises(PlanError) as caught:
        Plan.from_json(data)
    assert str(caught.value) == message


def test_missing_key_is_named() -> None:
    data = DIAMOND.to_json()
    del data["edges"]
    with pytest.raises(PlanError, match=r"^plan: key 'edges' is missing$"):
        Plan.from_json(data)


def test_the_plan_needs_neither_torch_nor_networkx() -> None:
    code = (
        "import sys, recreplay.runtime.plan\n"
        "print([m for m in ('torch', 'networkx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
