"""Rewrite: jagged lookups of tables of one width become one lookup, as regular ones do.

The ids of all features lie end to end, each with the room that its bucket has, and the bags of a
feature are followed by one for the room that a request leaves, which is dropped.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import fx

from recreplay.capture.features import dependencies
from recreplay.capture.lookups import Lookup, find_lookups, stays_in_table
from recreplay.capture.program import Program
from recreplay.capture.rewrites.lookup_ids import ids_dtype, in_dtype, ready_together
from recreplay.capture.weight_stacks import WeightStack

aten = torch.ops.aten


def stack_jagged(program: Program, stacks: Sequence[WeightStack]) -> None:
    """Rewrite `program` in place."""
    stack_of = {table: stack for stack in stacks for table in stack.members}
    groups: dict[tuple[str, object, bool], list[Lookup]] = defaultdict(list)
    for lookup in find_lookups(program):
        if lookup.jagged and lookup.weight in stack_of and stays_in_table(lookup):
            mode, by_user = lookup.node.args[4], bool(lookup.node.meta.get("user"))
            groups[stack_of[lookup.weight].name, mode, by_user].append(lookup)
    features = dependencies(program)
    for members in groups.values():
        for part in ready_together(program, members):
            if len(part) > 1:
                stack = stack_of[part[0].weight]
                for member, piece in zip(part, _look_up(program, stack, part), strict=True):
                    piece.meta["features"] = features[member.output]
                    for rows in list(member.output.users):  # the bags without the last
                        program.replace(rows, piece)
                program.sort()
    program.prune()


def _look_up(program: Program, stack: WeightStack, members: list[Lookup]) -> list[fx.Node]:
    """One lookup for all members; the pooled rows of each."""
    start = dict(zip(stack.members, stack.starts, strict=True))
    dtype = ids_dtype(stack, members)
    ids = [in_dtype(program, m.ids, dtype) for m in members]
    rooms = torch.tensor([int(i.meta["val"].shape[0]) for i in ids])
    first_rows = torch.tensor([start[m.weight] for m in members], dtype=dtype)
    shifts = program.constant(first_rows.repeat_interleave(rooms))
    shifted = program.call(aten.add.Tensor, program.call(aten.cat.default, ids), shifts)

    bags = int(members[0].node.args[2].meta["val"].shape[0]) - 1  # type: ignore[union-attr]
    ends = []
    for member in members:
        own = in_dtype(program, member.node.args[2], dtype)  # type: ignore[arg-type]
        ends.append(program.call(aten.slice.Tensor, own, 0, 0, bags))
    ends.append(program.constant(torch.zeros(1, dtype=dtype)))
    before = torch.cat([torch.zeros(1, dtype=torch.int64), rooms.cumsum(0)])
    counts = torch.tensor([bags] * len(members) + [1])
    bases = program.constant(before.repeat_interleave(counts).to(dtype))
    offsets = program.call(aten.add.Tensor, program.call(aten.cat.default, ends), bases)

    value = members[0].output.meta["val"]
    fake = program.fake((stack.rows, *stack.row), value.dtype)
    table = program.source("weight", stack.name, fake)
    mode = members[0].node.args[4]
    bag = program.call(
        aten.embedding_bag.padding_idx,
        table,
        shifted,
        offsets,
        False,
        mode,
        False,
        None,
        True,
        None,
    )
    pooled = program.call(operator.getitem, bag, 0)
    return [
        program.call(aten.slice.Tensor, pooled, 0, at * bags, at * bags + bags - 1)
        for at in range(len(members))
    ]
