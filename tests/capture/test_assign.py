"""The strategies: ordered plans, the theorem behind matching, and the folding."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recreplay.capture.assign import STRATEGIES, Strategy, assign
from recreplay.capture.assign.fold import phases
from recreplay.capture.assign.greedy import greedy_paths
from recreplay.capture.assign.matching import maximum_matching, merge_paths, path_cover
from recreplay.capture.dag import A100, Cost, Dag, descendants, members, transitive_reduction
from recreplay.runtime.plan import Plan, check_plan

UNTIMED = settings(deadline=None)  # cores are shared: one slow example is no failure
FOLDS: list[int | None] = [1, 2, 3, 8, None]


@st.composite
def dags(draw: st.DrawFn, least: int = 3, most: int = 40) -> Dag:
    n = draw(st.integers(least, most))
    forward = st.integers(0, n - 2).flatmap(
        lambda p: st.tuples(st.just(p), st.integers(p + 1, n - 1))
    )
    edges = draw(st.lists(forward, max_size=3 * n, unique=True))
    size = st.sampled_from([0, 100, 10**6, 10**8, 10**10])
    costs = draw(st.lists(st.builds(Cost, size, size), min_size=n, max_size=n))
    branch = st.sampled_from([None, "f0", "f1", "f2", "f3"])
    branches = draw(st.lists(branch, min_size=n, max_size=n))
    names = tuple(f"op{i}" for i in range(n))
    return Dag(names, tuple(edges), tuple(costs), tuple(branches))


def ranking_model(features: int, length: int) -> Dag:
    """`features` branches of `length` operators → concat → 3 towers × 6 → add → sigmoid."""
    names: list[str] = []
    edges: list[tuple[int, int]] = []
    branches: list[str | None] = []

    def operator(name: str, producers: list[int], branch: str | None = None) -> list[int]:
        edges.extend((producer, len(names)) for producer in producers)
        names.append(name)
        branches.append(branch)
        return [len(names) - 1]

    def line(name: str, start: list[int], count: int, branch: str | None = None) -> list[int]:
        for i in range(count):
            start = operator(f"{name}_{i}", start, branch)
        return start

    ends = [e for f in range(features) for e in line(f"f{f}", [], length, f"f{f}")]
    concat = operator("concat", ends)
    tops = [e for t in range(3) for e in line(f"tower{t}", concat, 6)]
    operator("sigmoid", operator("add", tops))
    costs = (Cost(4096, 4096),) * len(names)
    return Dag(tuple(names), tuple(edges), costs, tuple(branches))


def waits(plan: Plan) -> int:
    return sum(len(step.waits) for step in plan.steps)


def stream_of(plan: Plan) -> dict[str, int]:
    return {step.name: step.stream for step in plan.steps}


# Every strategy


@pytest.mark.parametrize("strategy", STRATEGIES)
@UNTIMED
@given(dag=dags(), streams=st.sampled_from(FOLDS))
def test_plans_are_ordered_and_complete(strategy: Strategy, dag: Dag, streams: int | None) -> None:
    plan = assign(dag, strategy, streams)
    check_plan(plan)
    assert plan.strategy == strategy
    assert sorted(step.name for step in plan.steps) == sorted(dag.names)
    named = {(plan.steps[p].name, plan.steps[c].name) for p, c in plan.edges}
    assert named == {(dag.names[p], dag.names[c]) for p, c in dag.edges}
    assert streams is None or plan.streams <= streams
    assert assign(dag, strategy, streams) == plan


@UNTIMED
@given(dag=dags())
def test_single_keeps_program_order(dag: Dag) -> None:
    plan = assign(dag, "single")
    assert [step.name for step in plan.steps] == list(dag.names)
    assert plan.streams == 1
    assert waits(plan) == 0


@UNTIMED
@given(dag=dags(), streams=st.sampled_from(FOLDS))
def test_feature_keeps_branches_whole(dag: Dag, streams: int | None) -> None:
    plan = assign(dag, "feature", streams)
    stream = stream_of(plan)
    by_branch: dict[str | None, set[int]] = {}
    for name, branch in zip(dag.names, dag.branches, strict=True):
        by_branch.setdefault(branch, set()).add(stream[name])
    assert all(len(used) == 1 for used in by_branch.values())
    assert by_branch.get(None, {0}) == {0}
    assert plan.streams <= max(1, len(set(dag.branches) - {None}))


@pytest.mark.parametrize("strategy", ["matching", "greedy"])
@UNTIMED
@given(dag=dags())
def test_no_concurrency_is_lost_without_a_cap(strategy: Strategy, dag: Dag) -> None:
    """The plan orders two operators only where the data does."""
    plan = assign(dag, strategy, None)
    index = {name: i for i, name in enumerate(dag.names)}
    before: list[int] = []  # bit sets of operators, per step
    last: dict[int, int] = {}
    for place, step in enumerate(plan.steps):
        direct = [*step.waits, *([last[step.stream]] if step.stream in last else [])]
        done = 0
        for j in direct:
            done |= before[j] | 1 << index[plan.steps[j].name]
        before.append(done)
        last[step.stream] = place
    reach = descendants(dag)
    for place, step in enumerate(plan.steps):
        me = index[step.name]
        assert before[place] == sum(1 << i for i in range(len(reach)) if reach[i] >> me & 1)


def test_the_same_plan_in_every_process() -> None:
    """No set of strings may decide: their order differs between processes."""
    code = (
        "from recreplay.capture.assign import STRATEGIES, assign\n"
        "from recreplay.capture.dag import Cost, Dag\n"
        "names = tuple(f'op{i}' for i in range(20))\n"
        "edges = tuple((i, j) for j in range(20) for i in range(j) if (i * 7 + j * 5) % 6 == 0)\n"
        "branches = tuple([f'f{i % 5}' for i in range(12)] + [None] * 8)\n"
        "dag = Dag(names, edges, (Cost(8, 8),) * 20, branches)\n"
        "print([assign(dag, s, k).to_json() for s in STRATEGIES for k in (2, 3, None)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_operator(strategy: Strategy) -> None:
    plan = assign(Dag(("only",), (), (Cost(0, 0),), (None,)), strategy)
    assert [(step.name, step.stream, step.waits) for step in plan.steps] == [("only", 0, ())]


def test_unknown_strategy_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"^unknown strategy 'nimble': expected single, feature, matching or greedy$",
    ):
        assign(ranking_model(2, 1), "nimble")  # type: ignore[arg-type]


def test_no_streams_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^streams must be at least 1, or None for no cap: got 0$"
    ):
        assign(ranking_model(2, 1), "feature", 0)


# Matching: the theorem


@UNTIMED
@given(dag=dags())
def test_matching_theorem(dag: Dag) -> None:
    cover = path_cover(dag)
    path_of = {node: p for p, path in enumerate(cover.paths) for node in path}
    assert sorted(path_of) == list(range(len(dag.names)))
    crossing = [edge for edge in cover.edges if path_of[edge[0]] != path_of[edge[1]]]
    assert len(crossing) == cover.syncs == len(cover.edges) - len(cover.matched)
    assert waits(assign(dag, "matching", None)) <= cover.syncs

    graph = nx.Graph()
    left = [("producer", node) for node in range(len(dag.names))]
    graph.add_nodes_from(left)
    graph.add_edges_from((("producer", p), ("consumer", c)) for p, c in cover.edges)
    partners = nx.bipartite.hopcroft_karp_matching(graph, left)
    assert len(cover.matched) == len(partners) // 2


@UNTIMED
@given(dag=dags(most=6))
def test_no_assignment_needs_fewer_synchronisations(dag: Dag) -> None:
    """Against every partition into chains of the partial order, that is, with no loss."""
    reach = descendants(dag)
    cover = path_cover(dag)
    fewest = min(
        sum(chain_of[p] != chain_of[c] for p, c in cover.edges)
        for chain_of in partitions_into_chains(reach)
    )
    assert cover.syncs == fewest


def partitions_into_chains(reach: list[int]) -> Iterator[list[int]]:
    def extend(chain_of: list[int]) -> Iterator[list[int]]:
        node = len(chain_of)
        if node == len(reach):
            yield chain_of
            return
        for chain in range(max(chain_of, default=-1) + 2):
            if all(reach[i] >> node & 1 for i, c in enumerate(chain_of) if c == chain):
                yield from extend([*chain_of, chain])

    return extend([])


@UNTIMED
@given(dag=dags())
def test_merged_paths_are_chains(dag: Dag) -> None:
    paths = path_cover(dag).paths
    chains = merge_paths(dag, paths)
    reach = descendants(dag)
    assert sorted(node for chain in chains for node in chain) == list(range(len(dag.names)))
    for chain in chains:
        assert all(reach[a] >> b & 1 for a, b in pairwise(chain))
    assert len(chains) <= len(paths) <= len(greedy_paths(dag))


@pytest.mark.parametrize(
    ("features", "length", "edges", "matched", "paths", "streams"),
    [
        (8, 3, 46, 35, 10, 8),
        (26, 3, 100, 71, 28, 26),
        (26, 6, 178, 149, 28, 26),
        (100, 4, 422, 319, 102, 100),
    ],
)
def test_ranking_model_figures(
    features: int, length: int, edges: int, matched: int, paths: int, streams: int
) -> None:
    dag = ranking_model(features, length)
    cover = path_cover(dag)
    assert (len(cover.edges), len(cover.matched), len(cover.paths)) == (edges, matched, paths)
    assert len(merge_paths(dag, cover.paths)) == streams
    assert assign(dag, "matching", None).streams == streams
    assert assign(dag, "feature", None).streams == features


@pytest.mark.parametrize(("streams", "most"), [(2, 3), (4, 7), (8, 11), (16, 19)])
def test_waits_do_not_depend_on_the_number_of_features(streams: int, most: int) -> None:
    plans = [assign(ranking_model(f, 4), "matching", streams) for f in (26, 100, 400)]
    assert {plan.streams for plan in plans} == {streams}
    assert len({waits(plan) for plan in plans}) == 1
    assert waits(plans[0]) <= most


def test_long_augmenting_paths() -> None:
    """Neighbouring features interact: the last producer can only move all the others along."""
    n = 3000
    consumers = [[i, i + 1] for i in range(n - 1)] + [[0]]
    assert maximum_matching(consumers, n) == [*range(1, n), 0]


# Folding and order


@pytest.mark.parametrize("strategy", ["feature", "matching", "greedy"])
@pytest.mark.parametrize("streams", [2, 4, 8])
def test_branches_are_balanced_beside_the_trunk(strategy: Strategy, streams: int) -> None:
    """The trunk runs after the branches, so the main stream gets its share of them."""
    dag = ranking_model(26, 3)
    stream = stream_of(assign(dag, strategy, streams))
    count = [0] * streams
    for name, branch in zip(dag.names, dag.branches, strict=True):
        count[stream[name]] += branch is not None
    assert max(count) - min(count) <= 3  # one branch
    assert stream["concat"] == stream["sigmoid"] == 0


def test_heavy_branches_are_spread() -> None:
    sizes = [9, 1, 1, 1, 9, 1, 1, 1]
    names = tuple(f"f{i}" for i in range(8))
    costs = (*(Cost(s * 10**8, 0) for s in sizes), Cost(0, 0))
    dag = Dag((*names, "concat"), tuple((i, 8) for i in range(8)), costs, (*names, None))
    stream = stream_of(assign(dag, "feature", 2))
    assert stream["f0"] != stream["f4"]
    assert sorted(stream[name] for name in names) == [0] * 4 + [1] * 4


def test_a_branch_of_views_takes_no_stream() -> None:
    names = ("a", "b", "view", "concat")
    costs = (Cost(9, 9), Cost(9, 9), Cost(0, 0), Cost(9, 9))
    dag = Dag(names, ((0, 3), (1, 3), (2, 3)), costs, ("fa", "fb", "fc", None))
    assert stream_of(assign(dag, "feature", 8)) == {"a": 0, "b": 1, "view": 0, "concat": 0}


def test_phases_split_the_trunk_where_nothing_runs_beside() -> None:
    dag = ranking_model(2, 2)
    number = dict(zip(dag.names, phases(dag), strict=True))
    assert number["f0_0"] == number["f1_1"] == 0
    assert 0 < number["concat"] <= number["tower0_0"] == number["tower2_5"] < number["add"]


@pytest.mark.parametrize("strategy", ["feature", "matching"])
def test_streams_start_together_and_branches_stay_together(strategy: Strategy) -> None:
    plan = assign(ranking_model(8, 3), strategy, 4)
    assert sorted(step.stream for step in plan.steps[:4]) == [0, 1, 2, 3]
    for stream in range(4):
        line = [s.name.split("_")[0] for s in plan.steps if s.stream == stream]
        branches = [name for name in line if name.startswith("f")]
        runs = [b for i, b in enumerate(branches) if i == 0 or branches[i - 1] != b]
        assert len(runs) == len(set(runs)) == 2


def test_greedy_hands_a_stream_to_one_consumer() -> None:
    names = ("a", "b", "c", "d")
    dag = Dag(names, ((0, 1), (0, 2), (1, 3), (2, 3)), (Cost(1, 1),) * 4, (None,) * 4)
    assert greedy_paths(dag) == ((0, 1, 3), (2,))


def test_greedy_alternates_between_kinds_and_starts_small() -> None:
    light, heavy = Cost(10**6, 0), Cost(10**9, 0)
    busy, busier = Cost(0, 10**8), Cost(0, 10**10)
    dag = Dag(("m2", "c2", "c1", "m1"), (), (heavy, busier, busy, light), (None,) * 4)
    plan = assign(dag, "greedy", 2)
    assert [step.name for step in plan.steps] == ["m1", "c1", "m2", "c2"]


# The graph


@UNTIMED
@given(dag=dags())
def test_transitive_reduction_and_closure(dag: Dag) -> None:
    graph = nx.DiGraph(dag.edges)
    graph.add_nodes_from(range(len(dag.names)))
    assert set(transitive_reduction(dag)) == set(nx.transitive_reduction(graph).edges)
    for node, reached in enumerate(descendants(dag)):
        assert set(members(reached)) == nx.descendants(graph, node)


def test_cost_is_a_launch_plus_the_slower_resource() -> None:
    assert Cost(0, 0).time_us() == 0  # a view
    assert Cost(1, 0).time_us() == pytest.approx(A100.launch_us, rel=1e-3)
    assert Cost(1_555_000, 0).time_us() == pytest.approx(A100.launch_us + 1)
    assert Cost(1_555_000, 39_000_000).time_us() == pytest.approx(A100.launch_us + 2)
    assert Cost(1, 100).compute_bound()
    assert not Cost(100, 100).compute_bound()
    with pytest.raises(ValueError, match=r"^a cost is not negative: -1 bytes, 0 flops$"):
        Cost(-1, 0)


@pytest.mark.parametrize(
    ("names", "edges", "costs", "branches", "message"),
    [
        ("", (), 0, 0, "a graph needs at least one operator"),
        ("ab", (), 1, 2, "2 operators but 1 costs"),
        ("ab", (), 2, 3, "2 operators but 3 branches"),
        ("aa", (), 2, 2, "two operators are named 'a'"),
        ("ab", ((0, 2),), 2, 2, "edge (0, 2) points outside the 2 operators"),
        ("ab", ((1, 0),), 2, 2, "edge 'b' -> 'a' runs against the program order"),
        ("ab", ((0, 0),), 2, 2, "edge 'a' -> 'a' runs against the program order"),
        ("ab", ((0, 1), (0, 1)), 2, 2, "an edge is listed twice"),
    ],
)
def test_malformed_graphs_are_named(
    names: str, edges: tuple[tuple[int, int], ...], costs: int, branches: int, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Dag(tuple(names), edges, (Cost(1, 1),) * costs, (None,) * branches)
