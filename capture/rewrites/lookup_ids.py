"""Ids of lookups that are to be one: in which dtype, and which can be looked up together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import fx

from recreplay.capture.lookups import Lookup
from recreplay.capture.program import Program
from recreplay.capture.weight_stacks import WeightStack

aten = torch.ops.aten


def ready_together(program: Program, members: Sequence[Lookup]) -> list[list[Lookup]]:
    """Split a group so that no lookup's ids depend on the output of another one of its part."""
    depth: dict[fx.Node, int] = {}
    outputs = {m.node for m in members}
    for node in program.graph.nodes:
        above = max((depth[n] for n in node.all_input_nodes), default=0)
        depth[node] = above + 1 if node in outputs else above
    parts: dict[int, list[Lookup]] = defaultdict(list)
    for member in members:
        parts[depth[member.node]].append(member)
    return list(parts.values())


def ids_dtype(stack: WeightStack, members: Sequence[Lookup]) -> torch.dtype:
    """int32 where most of the ids come as int32 and the rows of the stack can be counted so.

    The others fit as well: what is stacked stays in its table.
    """
    ids = [narrowest(m.ids).meta["val"] for m in members]
    narrow = sum(i.numel() for i in ids if i.dtype == torch.int32)
    most = 2 * narrow > sum(i.numel() for i in ids)
    return torch.int32 if most and stack.rows <= torch.iinfo(torch.int32).max else torch.int64


def in_dtype(program: Program, ids: fx.Node, dtype: torch.dtype) -> fx.Node:
    """The same integers in another dtype, from before they were widened if they were."""
    ids = narrowest(ids)
    if ids.meta["val"].dtype == dtype:
        return ids
    return program.call(aten.to.dtype, ids, dtype)


def narrowest(ids: fx.Node) -> fx.Node:
    """The same ids before they were widened, if that is the last that was done to them."""
    while widens(ids):
        ids = ids.args[0]  # type: ignore[assignment]
    return ids


def widens(node: fx.Node) -> bool:
    if node.target not in (aten._to_copy.default, aten.to.dtype):
        return False
    before = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    return bool(before == torch.int32 and node.meta["val"].dtype == torch.int64)
