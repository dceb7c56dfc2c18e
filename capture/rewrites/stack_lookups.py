"""Rewrite: all tables of one width become one table, and their lookups one operator per pooling.

The tables are laid end to end in one storage, of which each stays a view by rows; the ids of table
i are raised by the row where it begins. Inputs that hold ids of one group only are staged side by
side, `[F, B, L]`, so that the ids of the group are one buffer that needs no gathering. Measured in
DESIGN: 231 -> 63 us for 26 tables at batch 1, and no gain at 128.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from math import prod

import torch
from torch import fx

from recreplay.capture.features import dependencies
from recreplay.capture.lookups import Lookup, find_lookups, stays_in_table
from recreplay.capture.lowering import NOTHING, Lowering
from recreplay.capture.program import Program
from recreplay.capture.rewrites.lookup_ids import (
    ids_dtype,
    in_dtype,
    narrowest,
    ready_together,
    widens,
)
from recreplay.capture.rewrites.stack_jagged import stack_jagged
from recreplay.capture.weight_stacks import WeightStack, lay_end_to_end

aten = torch.ops.aten


def plan_stacks(program: Program, lowering: Lowering = NOTHING) -> list[WeightStack]:
    """The stacks of a program: tables of one width and dtype as they are stored, where there are
    two or more.

    The same for every bucket, since it depends on the tables alone.
    """
    groups: dict[tuple[int, torch.dtype], dict[str, int]] = defaultdict(dict)
    for lookup in find_lookups(program):
        if lookup.stackable or lookup.jagged:
            full = lookup.node.args[0].meta["val"].dtype  # type: ignore[union-attr]
            dtype = lowering.dtype(lookup.weight) or full
            groups[lookup.dim, dtype][lookup.weight] = lookup.rows
    return [
        lay_end_to_end(f"stack_{str(dtype).removeprefix('torch.')}_{dim}", tables, (dim,), dtype)
        for (dim, dtype), tables in groups.items()
        if len(tables) > 1
    ]


def stack_lookups(program: Program, stacks: Sequence[WeightStack]) -> None:
    """Rewrite `program` in place."""
    stack_of = {table: stack for stack in stacks for table in stack.members}
    # The user side apart: its inputs have other numbers of rows, so they are staged apart.
    groups: dict[tuple[str, str, bool], list[Lookup]] = defaultdict(list)
    for lookup in find_lookups(program):
        if lookup.stackable and lookup.weight in stack_of and stays_in_table(lookup):
            by_user = bool(lookup.node.meta.get("user"))
            groups[stack_of[lookup.weight].name, lookup.pooling, by_user].append(lookup)
    by_name = {stack.name: stack for stack in stacks}
    features = dependencies(program)
    for (name, pooling, _), members in groups.items():
        for part in ready_together(program, members):
            if len(part) > 1:
                group = f"{name}_{pooling}_{len(program.staged)}"
                for member, piece in _rewrite_group(program, group, by_name[name], part):
                    piece.meta["features"] = features[member.output]
                    program.replace(member.output, piece)
                program.sort()
    stack_jagged(program, stacks)
    program.prune()


def _rewrite_group(
    program: Program, group: str, stack: WeightStack, members: list[Lookup]
) -> list[tuple[Lookup, fx.Node]]:
    """One lookup for all members; what takes the place of each one's output."""
    taken = {name for names in program.staged.values() for name in names}
    dtype = ids_dtype(stack, members)
    staged = [m for m in members if _whole_input(m, members, dtype) not in (None, *taken)]
    rest = [m for m in members if m not in staged]
    if len(staged) < 2:
        staged, rest = [], members
    # Inputs of one shape side by side, so that the host copies and checks them as one block.
    staged.sort(key=lambda m: m.length)
    ordered = [*staged, *rest]
    start = dict(zip(stack.members, stack.starts, strict=True))
    counts = [prod(m.ids.meta["val"].shape) for m in ordered]
    pieces = []
    if staged:
        program.staged[group] = tuple(str(_whole_input(m, members, dtype)) for m in staged)
        total = sum(counts[: len(staged)])
        pieces.append(program.source("staged", group, program.fake((total,), dtype)))
    for member in rest:
        flat = program.call(aten.reshape.default, narrowest(member.ids), [-1])
        pieces.append(in_dtype(program, flat, dtype))
    ids = pieces[0] if len(pieces) == 1 else program.call(aten.cat.default, pieces)
    # One number to add per id, not one per table: broadcasting would need a division per id where
    # the batch is dynamic (7 % of a request of 26 tables at batch 16).
    first_rows = torch.tensor([start[m.weight] for m in ordered], dtype=dtype)
    repeated = program.constant(first_rows.repeat_interleave(torch.tensor(counts)))
    ids = program.call(aten.add.Tensor, ids, repeated)
    table = program.source(
        "weight",
        stack.name,
        program.fake((stack.rows, *stack.row), ordered[0].output.meta["val"].dtype),
    )
    rows = _look_up(program, table, ids, ordered, counts)
    replaced = []
    at = 0
    for member, count in zip(ordered, counts, strict=True):
        size = count // member.length
        piece = program.call(aten.slice.Tensor, rows, 0, at, at + size)
        shape = list(member.output.meta["val"].shape)
        if list(piece.meta["val"].shape) != shape:
            piece = program.call(aten.view.default, piece, shape)
        at += size
        replaced.append((member, piece))
    return replaced


def _look_up(
    program: Program, table: fx.Node, ids: fx.Node, members: list[Lookup], counts: list[int]
) -> fx.Node:
    pooling = members[0].pooling
    if pooling == "none":
        return program.call(aten.embedding.default, table, ids)
    lengths = torch.tensor([m.length for m in members])
    bags = torch.tensor(counts) // lengths
    sizes = lengths.repeat_interleave(bags)
    # Of the dtype of the ids: torch would widen the one that is narrower at every replay.
    first = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)[:-1]])
    offsets = program.constant(first.to(ids.meta["val"].dtype))
    mode = 1 if pooling == "mean" else 0
    bag = program.call(
        aten.embedding_bag.padding_idx, table, ids, offsets, False, mode, False, None, False, None
    )
    return program.call(operator.getitem, bag, 0)


def _whole_input(lookup: Lookup, members: list[Lookup], dtype: torch.dtype) -> str | None:
    """The input that is exactly this lookup's ids, in order, and no other member's."""
    node = _root(lookup.ids)
    target = str(node.target)
    if not target.startswith("input:") or node.meta["val"].dtype != dtype:
        return None
    readers = [m for m in members if _root(m.ids) is node]
    return target.removeprefix("input:") if readers == [lookup] else None


def _root(node: fx.Node) -> fx.Node:
    """What ids are a view of, or were widened from."""
    while node.target in (aten.view.default, aten.reshape.default) or widens(node):
        node = node.args[0]  # type: ignore[assignment]
    return node
