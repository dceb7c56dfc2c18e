"""One buffer of ids for many lookups, and where in it each of them finds its own.

Inputs that hold nothing but ids are staged side by side and read where they lie: whole, or one
column or some columns of each row. Everything else is put behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from recreplay.capture.lookups import Lookup
from recreplay.capture.program import Program
from recreplay.capture.rewrites.lookup_ids import in_dtype, narrowest, widens
from recreplay.capture.views import slice_arguments

aten = torch.ops.aten
# The same ids in the same order, moved or not.
_KEEPS_ORDER = (
    *(aten.view.default, aten.reshape.default, aten._unsafe_view.default),
    *(aten.clone.default, aten.contiguous.default),
)


@dataclass(frozen=True)
class Ids:
    """Bag b of a lookup begins at `base + b * stride`; a jagged one has its bags from `base` on."""

    base: int
    stride: int


def find_ids(program: Program, group: str, members: Sequence[Lookup]) -> tuple[fx.Node, list[Ids]]:
    """The ids of all members in one flat tensor, int32 if all come so, and each one's place."""
    narrow = all(narrowest(m.ids).meta["val"].dtype == torch.int32 for m in members)
    dtype = torch.int32 if narrow else torch.int64
    taken = {name for names in program.staged.values() for name in names}
    spots = [_in_input(m, dtype) for m in members]
    inputs = [spot[0] for spot in spots if spot is not None and _name(spot[0]) not in taken]
    base: dict[fx.Node, int] = {}
    end = 0
    for node in dict.fromkeys(inputs):
        base[node] = end
        end += prod(node.meta["val"].shape)
    pieces = []
    if base:
        program.staged[group] = tuple(_name(node) for node in base)
        pieces.append(program.source("staged", group, program.fake((end,), dtype)))
    places = []
    for member, spot in zip(members, spots, strict=True):
        if spot is not None and spot[0] in base:
            source, column, stride = spot
            places.append(Ids(base[source] + column, stride))
            continue
        source = narrowest(member.ids)
        if source not in base:
            base[source] = end
            end += prod(source.meta["val"].shape)
            flat = program.call(aten.reshape.default, source, [-1])
            pieces.append(in_dtype(program, flat, dtype))
        places.append(Ids(base[source], member.length))
    ids = pieces[0] if len(pieces) == 1 else program.call(aten.cat.default, pieces)
    return ids, places


def join(
    program: Program, nodes: Sequence[fx.Node | None], dtype: torch.dtype
) -> tuple[fx.Node | None, list[int]]:
    """All nodes flat and end to end, each once, and where each begins; -1 for None."""
    base: dict[fx.Node, int] = {}
    pieces, end = [], 0
    for node in dict.fromkeys(nodes):
        if node is not None:
            base[node] = end
            end += prod(node.meta["val"].shape)
            flat = node
            if node.meta["val"].ndim != 1:
                flat = program.call(aten.reshape.default, node, [-1])
            pieces.append(in_dtype(program, flat, dtype))
    starts = [-1 if node is None else base[node] for node in nodes]
    if len(pieces) < 2:
        return (pieces[0] if pieces else None), starts
    return program.call(aten.cat.default, pieces), starts


def _in_input(lookup: Lookup, dtype: torch.dtype) -> tuple[fx.Node, int, int] | None:
    """The input of this dtype in which a lookup's ids lie, the first one's place, and the stride
    of its bags."""
    node, column, stride = lookup.ids, 0, lookup.length
    bags = prod(lookup.ids.meta["val"].shape) // max(lookup.length, 1)
    while node.target in _KEEPS_ORDER or widens(node):
        node = node.args[0]  # type: ignore[assignment]
    cut = _columns(node)
    if cut is not None:
        before, column, width = cut
        rows, stride = before.meta["val"].shape
        if width != lookup.length or bags != rows:
            return None
        if lookup.scales is not None and stride != lookup.length:
            return None  # factors lie as ids do
        node = before
        while widens(node):
            node = node.args[0]  # type: ignore[assignment]
    if not str(node.target).startswith("input:") or node.meta["val"].dtype != dtype:
        return None
    return node, column, int(stride)


def _columns(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """What adjacent columns are cut from, the first of them, and how many there are."""
    if node.target not in (aten.select.int, aten.slice.Tensor):
        return None
    before = node.args[0]
    assert isinstance(before, fx.Node)
    if before.meta["val"].ndim != 2:
        return None
    count = int(before.meta["val"].shape[1])
    if node.target is aten.select.int:
        dim, index = node.args[1:3]
        return (before, int(index) % count, 1) if dim in (1, -1) else None  # type: ignore[arg-type]
    dim, start, _, step = slice_arguments(node)
    if dim not in (1, -1) or step != 1:
        return None
    return before, int(start or 0) % count, int(node.meta["val"].shape[1])


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("input:")
