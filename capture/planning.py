"""From a model to plans: each bucket specialised, rewritten, assigned and cut, for one choice."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import cast

from torch import fx

from recreplay.capture.assign import Strategy, assign
from recreplay.capture.choices import Choice
from recreplay.capture.compilers.tensorrt import PRECISIONS
from recreplay.capture.dense import dense_nodes
from recreplay.capture.features import to_dag
from recreplay.capture.ingest import Ingested
from recreplay.capture.lookups import id_bounds
from recreplay.capture.lowering import NOTHING, Lowering, find_lowering, with_storages
from recreplay.capture.operator_graph import all_strategies, operator_graph
from recreplay.capture.precision import FULL, Precision
from recreplay.capture.program import Program
from recreplay.capture.rewrites.attend import attend
from recreplay.capture.rewrites.fuse_epilogues import fuse_epilogues
from recreplay.capture.rewrites.group_lookups import group_lookups
from recreplay.capture.rewrites.inline_linears import inline_columns, inline_linears
from recreplay.capture.rewrites.join_pieces import join_pieces
from recreplay.capture.rewrites.lower_products import lower_products
from recreplay.capture.rewrites.lower_tables import lower_tables
from recreplay.capture.rewrites.narrow_ids import narrow_ids, narrowed
from recreplay.capture.rewrites.pack_linears import pack_large_linears, pack_linears
from recreplay.capture.rewrites.pack_products import pack_products
from recreplay.capture.rewrites.pool_jagged import pool_jagged
from recreplay.capture.rewrites.pool_rows import pool_rows
from recreplay.capture.rewrites.recurrent import recurrent
from recreplay.capture.rewrites.slice_early import slice_early
from recreplay.capture.rewrites.split_linears import split_linears
from recreplay.capture.rewrites.spread_bags import spread_bags
from recreplay.capture.rewrites.stack_branches import plan_weight_stacks, stack_branches
from recreplay.capture.rewrites.stack_lookups import plan_stacks, stack_lookups
from recreplay.capture.rewrites.top_k import top_k
from recreplay.capture.rewrites.turn_linears import turn_linears
from recreplay.capture.rewrites.weigh_rows import weigh_rows
from recreplay.capture.rewrites.widen_weights import widen_weights
from recreplay.capture.schedule import side_by_side
from recreplay.capture.segments import BoundSegment, cut
from recreplay.capture.specialise import specialise
from recreplay.capture.table_groups import TableGroup, plan_groups
from recreplay.capture.weight_stacks import WeightStack
from recreplay.runtime.graph import BucketGraph, OperatorGraph
from recreplay.runtime.lowered import value_dtype
from recreplay.runtime.plan import Plan, check_plan
from recreplay.runtime.spec import IdBound


@dataclass(frozen=True)
class Planned:
    """One bucket after assignment and cutting."""

    program: Program
    plan: Plan
    segments: list[BoundSegment]
    graph: BucketGraph
    modelled_us: float  # what the cost model says of its operators, side by side


@dataclass(frozen=True)
class Survey:
    """What is the same for all buckets and choices, found on the smallest bucket; what
    grows with the bucket, on the largest as well."""

    bounds: tuple[IdBound, ...]
    unchecked: tuple[str, ...]
    tables: tuple[WeightStack, ...]
    branches: tuple[WeightStack, ...]
    groups: tuple[TableGroup, ...] = ()
    lowering: Lowering = NOTHING
    narrowed: frozenset[str] = frozenset()  # inputs that may be staged as int32
    # Whether packages multiply pairs of bfloat16 as `packed_linear` lays them.
    multiplies_pairs: bool = False


def survey(
    model: Ingested,
    size: int,
    rewrites: Sequence[str],
    precision: Precision = FULL,
    device: str = "cpu",
    largest: int | None = None,
    instructions: Container[str] = (),
) -> Survey:
    """`size` is the smallest bucket, `largest` the largest if there are others. `rewrites`: all
    that any choice applies. How weights are stored follows from them. `instructions`: those that
    packages may use."""
    folds = "fold_weights" in rewrites
    program = specialise(model, size, folds)
    lowering = find_lowering(program, precision)
    last = None if largest is None or largest == size else specialise(model, largest, folds)
    bounds, unchecked = id_bounds(program, last)
    narrow = narrowed(model.inputs, bounds, device)
    if "narrow_ids" in rewrites:
        narrow_ids(program, narrow)
    tables = plan_stacks(program, lowering) if "stack_lookups" in rewrites else []
    groups = plan_groups(program, tables, lowering) if "group_lookups" in rewrites else []
    branches: list[WeightStack] = []
    if "stack_branches" in rewrites:
        group_lookups(program, groups)
        if "pool_rows" in rewrites:
            pool_jagged(program, tables, lowering.tables)
            weigh_rows(program, lowering.tables)
        stack_lookups(program, tables)
        if "slice_early" in rewrites:
            slice_early(program)
        laid = [*tables, *(group.flat for group in groups)]
        elsewhere = {name for stack in laid for name in stack.members}
        branches = plan_weight_stacks(program, lowering, elsewhere)
        lowering = lowering.without_split(branches)
    return Survey(
        bounds=tuple(bounds),
        unchecked=tuple(unchecked),
        tables=tuple(tables),
        branches=tuple(branches),
        groups=tuple(groups),
        lowering=lowering,
        narrowed=narrow,
        multiplies_pairs="avx512_bf16" in instructions,
    )


def plan_buckets(
    model: Ingested,
    sizes: Sequence[int],
    choice: Choice,
    known: Survey,
    progress: Callable[[str], None],
) -> list[Planned]:
    """The plan of every bucket, in ascending order."""
    planned = []
    for size in sizes:
        program = specialise(model, size, "fold_weights" in choice.rewrites)
        before = _described(program, choice) if choice.rewrites else None
        _rewrite(program, choice, known, smallest=size == sizes[0])
        dag, nodes = to_dag(program)
        operators = assign(dag, cast(Strategy, choice.strategy), choice.streams)
        check_plan(operators)
        apart = dense_nodes(operators, nodes) if choice.compiler in PRECISIONS else frozenset()
        plan, segments = cut(program, operators, nodes, dag.branches, apart)
        check_plan(plan)
        after = operator_graph(dag, nodes, all_strategies(dag, operators, choice.streams))
        if before is not None and before.operators == after.operators:
            before = None
        cost = dict(zip(dag.names, (cost.time_us() for cost in dag.costs), strict=True))
        modelled = side_by_side(operators, [cost[step.name] for step in operators.steps]).total
        graph = BucketGraph(size, after, before)
        planned.append(Planned(program, plan, segments, graph, modelled))
        progress(
            f"bucket {size}: {len(nodes)} operators, {len(segments)} segments, {plan.streams} "
            "streams"
        )
    return planned


def sources(graph: fx.Graph, *kinds: str) -> list[str]:
    """Names of what a program reads of these kinds: see `Program`."""
    found = (str(n.target).partition(":") for n in graph.find_nodes(op="placeholder"))
    return [name for kind, _, name in found if kind in kinds]


def _rewrite(program: Program, choice: Choice, known: Survey, smallest: bool) -> None:
    if "narrow_ids" in choice.rewrites:
        narrow_ids(program, known.narrowed)
    # Before stacking, so that only what it cannot take is stacked.
    if "group_lookups" in choice.rewrites:
        group_lookups(program, known.groups)
    if "pool_rows" in choice.rewrites:
        stacks = known.tables if "stack_lookups" in choice.rewrites else ()
        pool_jagged(program, stacks, known.lowering.tables)
        weigh_rows(program, known.lowering.tables)
    if "stack_lookups" in choice.rewrites:
        stack_lookups(program, known.tables)
    if "slice_early" in choice.rewrites:
        slice_early(program)
    if "recurrent" in choice.rewrites:
        recurrent(program)
    lowering = known.lowering
    kind = lowering.precision.products
    lowers = kind is not None and choice.precision != "fp32"
    if "attend" in choice.rewrites:
        attend(program, lowers)
    if "split_linears" in choice.rewrites:
        split_linears(program)
    packs = "pack_linears" in choice.rewrites and (not lowers or known.multiplies_pairs)
    # Before branches are stacked: what is large gains nothing from a batch.
    if packs:
        pack_large_linears(program, even=lowers)
    if "stack_branches" in choice.rewrites:
        stack_branches(program, known.branches)
    if "join_pieces" in choice.rewrites:
        join_pieces(program)
    if packs:
        pack_linears(program, lowers)
    # It pays in the smallest bucket only, which has packages of its own; the others share.
    if "inline_linears" in choice.rewrites and smallest:
        inline_linears(program)
    if "inline_columns" in choice.rewrites:
        inline_columns(program)
    if packs and not lowers:
        pack_products(program)
    # After all that reads linear layers, because what it leaves is none any more.
    if "turn_linears" in choice.rewrites:
        turn_linears(program)
    # Last, so that the others see types and reads as the model has them.
    if lowering.precision.rows is not None:
        tables = with_storages(lowering.tables, known.tables)
        lower_tables(program, tables, lowering.precision.rows, "pool_bytes" in choice.rewrites)
    if "pool_rows" in choice.rewrites:
        pool_rows(program)
    if "top_k" in choice.rewrites:
        top_k(program)
    if kind is not None:
        weights = with_storages(lowering.factors, known.branches)
        if lowers:
            lower_products(program, weights, value_dtype(kind))
        else:
            widen_weights(program, weights)
    if "spread_bags" in choice.rewrites:
        spread_bags(program)
    # What it leaves is no layer any more, either.
    if "fuse_epilogues" in choice.rewrites:
        fuse_epilogues(program)


def _described(program: Program, choice: Choice) -> OperatorGraph:
    """The program as it is now, under the strategy alone that is captured."""
    dag, nodes = to_dag(program)
    return operator_graph(
        dag, nodes, [assign(dag, cast(Strategy, choice.strategy), choice.streams)]
    )
