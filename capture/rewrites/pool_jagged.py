"""Rewrite: jagged bags of float32 rows are looked up and pooled by a function of ours.

It reads the ids of all features where they are staged, each from where its own begin, and stops
where a request's values do: torch's one `embedding_bag` of stacked tables wants them put together,
with the room that a request leaves. Before stacking, which takes what is left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import torch
from torch import fx

from recreplay.capture.features import dependencies
from recreplay.capture.lookups import Lookup, find_lookups, stays_in_table
from recreplay.capture.program import Program
from recreplay.capture.rewrites.lookup_ids import ready_together
from recreplay.capture.rewrites.lookup_sources import find_ids, join
from recreplay.capture.views import slice_arguments
from recreplay.capture.weight_stacks import WeightStack
from recreplay.runtime.aten import JAGGED_BAGS, resolve

aten = torch.ops.aten


def pool_jagged(
    program: Program, stacks: Sequence[WeightStack], lowered: Collection[str] = ()
) -> None:
    """Rewrite `program` in place, but for tables that are stored `lowered`."""
    stack_of = {table: stack for stack in stacks for table in stack.members}
    groups: dict[tuple[str, str, bool], list[Lookup]] = defaultdict(list)
    for lookup in find_lookups(program):
        if _is_plain(lookup) and lookup.weight not in lowered:
            stack = stack_of.get(lookup.weight) if stays_in_table(lookup) else None
            name = lookup.weight if stack is None else stack.name
            groups[name, lookup.pooling, bool(lookup.node.meta.get("user"))].append(lookup)
    features = dependencies(program)
    for (_, pooling, _), members in groups.items():
        for part in ready_together(program, members):
            stack = stack_of.get(part[0].weight) if stays_in_table(part[0]) else None
            for member, piece in zip(part, _pool(program, stack, part, pooling), strict=True):
                piece.meta["features"] = features[member.output]
                program.replace(_rows(member), piece)
            program.sort()
    program.prune()


def _is_plain(lookup: Lookup) -> bool:
    """Whether it is a sum or a mean of float32 rows, of which nothing else is read."""
    if lookup.bags != "jagged" or not lookup.jagged:
        return False
    table = lookup.node.args[0].meta["val"]  # type: ignore[union-attr]
    users = list(lookup.output.users)
    if table.dtype != torch.float32 or len(users) != 1:
        return False
    if users[0].target is not aten.slice.Tensor:
        return False
    rows = int(lookup.output.meta["val"].shape[0]) - 1
    return slice_arguments(users[0]) == (0, 0, rows, 1)


def _rows(lookup: Lookup) -> fx.Node:
    """The pooled rows, without the bag of the room."""
    return next(iter(lookup.output.users))


def _pool(
    program: Program, stack: WeightStack | None, members: Sequence[Lookup], pooling: str
) -> list[fx.Node]:
    """One call for all members; the pooled rows of each."""
    value = members[0].output.meta["val"]
    table = members[0].node.args[0]
    start = {members[0].weight: 0}
    if stack is not None:
        fake = program.fake((stack.rows, *stack.row), value.dtype)
        table = program.source("weight", stack.name, fake)
        start = dict(zip(stack.members, stack.starts, strict=True))
    group = f"jagged_{members[0].weight}_{len(program.staged)}"
    ids, places = find_ids(program, group, members)
    ends, begins = join(program, [m.node.args[2] for m in members], ids.meta["val"].dtype)  # type: ignore[misc]
    spots = [
        [p.base, at, start[m.weight]] for m, p, at in zip(members, places, begins, strict=True)
    ]
    bags = int(_rows(members[0]).meta["val"].shape[0])
    divisions = len({m.node.args[2] for m in members})
    pooled = program.call(
        resolve(JAGGED_BAGS),
        table,
        ids,
        ends,
        program.constant(torch.tensor(spots)),
        divisions,
        pooling == "mean",
    )
    if len(members) == 1:
        return [pooled]
    return [
        program.call(aten.slice.Tensor, pooled, 0, i * bags, (i + 1) * bags)
        for i in range(len(members))
    ]
