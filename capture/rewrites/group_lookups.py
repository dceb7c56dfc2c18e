"""Rewrite, for CUDA: the lookups of all tables of one dtype become one operator.

Tables of any width, sums, means and single rows, regular and jagged bags, with factors or without,
are one launch over one storage: `recreplay.runtime.grouped_lookup`. Inputs that hold ids are staged
side by side and read in place, also where a feature is one column of a matrix of ids. The result is
one flat buffer: columns of a matrix where the trunk concatenates features, else rows of each
feature by themselves. Not measured on a device yet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from recreplay.capture.features import dependencies
from recreplay.capture.lookups import Lookup, find_lookups
from recreplay.capture.program import Program
from recreplay.capture.rewrites.lookup_columns import Columns, drop_concatenations, plan_columns
from recreplay.capture.rewrites.lookup_ids import ready_together
from recreplay.capture.rewrites.lookup_sources import Ids, find_ids, join
from recreplay.capture.table_groups import TableGroup
from recreplay.capture.views import slice_arguments
from recreplay.runtime.aten import GROUPED_LOOKUP, resolve
from recreplay.runtime.errors import CaptureError
from recreplay.runtime.lookup_slots import (
    SPLITS,
    UNROLL,
    LookupSlot,
    bags_of_a_program,
    for_threads,
    pack_slots,
    vector,
)

aten = torch.ops.aten
_ALIGNMENT = 64  # bytes to which a row of the result is rounded up, so that regions begin there
_MOST_SLOTS = 65535  # the second dimension of a CUDA grid
# Threads with which a device is busy enough that sharing a bag would only cost. Not measured.
_BUSY = 1 << 16


@dataclass(frozen=True)
class _Member:
    """One lookup: its pooled rows as the program reads them, and how many bags it has."""

    lookup: Lookup
    result: fx.Node

    @property
    def bags(self) -> int:
        return int(prod(self.result.meta["val"].shape)) // self.lookup.dim

    @property
    def usual_length(self) -> int:
        """Ids of a bag; of a jagged one, when the room is full."""
        room = int(prod(self.lookup.ids.meta["val"].shape))
        return max(room // self.bags, 1)


@dataclass(frozen=True)
class _Home:
    """Where the bags of a member go: the first element, and from one bag to the next."""

    start: int
    stride: int


def group_lookups(program: Program, groups: Sequence[TableGroup]) -> None:
    """Rewrite `program` in place. For CUDA alone."""
    group_of = {table: group for group in groups for table in group.flat.members}
    # The user side apart: its inputs have other numbers of rows, so they are staged apart.
    found: dict[tuple[str, bool], list[Lookup]] = defaultdict(list)
    for lookup in find_lookups(program):
        if lookup.bags and lookup.weight in group_of and _result(lookup) is not None:
            by_user = bool(lookup.node.meta.get("user"))
            found[group_of[lookup.weight].name, by_user].append(lookup)
    for lookups in found.values():
        for part in ready_together(program, lookups):
            # Inputs of one shape side by side, as where lookups are stacked, and so are results of
            # one width, which stacked branches read together.
            members = [
                _Member(lookup, result)
                for lookup in sorted(part, key=lambda lookup: (lookup.length, lookup.dim))
                if (result := _result(lookup)) is not None
            ]
            _group(program, group_of[part[0].weight], members)
            program.sort()
    program.prune()


def _result(lookup: Lookup) -> fx.Node | None:
    """The pooled rows; of jagged bags, without the room behind them."""
    if lookup.bags != "jagged":
        return lookup.output
    users = list(lookup.output.users)
    if len(users) != 1 or users[0].target is not aten.slice.Tensor:
        return None
    rows = int(lookup.output.meta["val"].shape[0]) - 1
    return users[0] if slice_arguments(users[0]) == (0, 0, rows, 1) else None


def _group(program: Program, group: TableGroup, members: Sequence[_Member]) -> None:
    features = dependencies(program)
    places, widths = plan_columns(program, [m.result for m in members], features)
    homes, matrices, elements = _lay_out(members, places, widths)
    looked_up = _call(program, group, members, homes, elements)
    rows = {places[m.result].matrix: m.bags for m in members if m.result in places}

    def region(start: int, shape: Sequence[int]) -> fx.Node:
        flat = program.call(aten.slice.Tensor, looked_up, 0, start, start + prod(shape))
        return program.call(aten.view.default, flat, list(shape))

    def columns(matrix: int, start: int, end: int) -> fx.Node:
        whole = region(matrices[matrix], [rows[matrix], widths[matrix]])
        if (start, end) == (0, widths[matrix]):
            return whole
        return program.call(aten.slice.Tensor, whole, 1, start, end)

    drop_concatenations(program, places, columns, widths)
    for member, home in zip(members, homes, strict=True):
        if member.result not in places:
            piece = region(home.start, member.result.meta["val"].shape)
            piece.meta["features"] = features[member.lookup.output]
            program.replace(member.result, piece)


def _lay_out(
    members: Sequence[_Member], places: dict[fx.Node, Columns], widths: Sequence[int]
) -> tuple[list[_Home], list[int], int]:
    """Where each member goes, where each matrix begins, and the elements of the whole.

    Rows are rounded up and not regions, so that every number is linear in the batch, and buckets
    can share a package.
    """
    unit = _ALIGNMENT // members[0].result.meta["val"].element_size()
    matrices = [-1] * len(widths)
    homes = []
    end = 0
    for member in members:
        place = places.get(member.result)
        if place is None:
            rows, *row = member.result.meta["val"].shape
            homes.append(_Home(end, member.lookup.dim))
            end += rows * _rounded(prod(row), unit)
            continue
        if matrices[place.matrix] < 0:
            matrices[place.matrix] = end
            end += member.bags * _rounded(widths[place.matrix], unit)
        homes.append(_Home(matrices[place.matrix] + place.start, widths[place.matrix]))
    return homes, matrices, end


def _call(
    program: Program,
    group: TableGroup,
    members: Sequence[_Member],
    homes: Sequence[_Home],
    elements: int,
) -> fx.Node:
    """The operator: one flat tensor of so many elements."""
    dtype, itemsize = members[0].result.meta["val"].dtype, group.dtype.itemsize
    lookups = [m.lookup for m in members]
    ids, spots = find_ids(program, f"{group.name}_{len(program.staged)}", lookups)
    jagged = [_divider(lookup) for lookup in lookups]
    narrow = all(n is None or n.meta["val"].dtype == torch.int32 for n in jagged)
    offsets, ends = join(program, jagged, torch.int32 if narrow else torch.int64)
    scales, factors = join(program, [lookup.scales for lookup in lookups], dtype)
    split = _split(members, itemsize)
    slots = [
        slot
        for member, home, spot, at, by in zip(members, homes, spots, ends, factors, strict=True)
        for slot in for_threads(_slot(member, group, home, spot, at, by), itemsize, split)
    ]
    if len(slots) > _MOST_SLOTS:
        raise CaptureError(
            f"the lookups of {group.name} take {len(slots)} slots, and one launch has at most "
            f"{_MOST_SLOTS}; capture without the rewrite group_lookups"
        )
    storage = program.source("weight", group.name, program.fake((group.flat.rows,), group.dtype))
    pairs = None
    if group.pairs is not None:
        kind = program.fake((group.pairs.rows, *group.pairs.row), torch.float32)
        pairs = program.source("weight", group.pairs.name, kind)
    looked_up = program.call(
        resolve(GROUPED_LOOKUP),
        storage,
        ids,
        offsets,
        scales,
        program.constant(pack_slots(slots)),
        pairs,
        elements,
        max(slot.bags for slot in slots),
        bags_of_a_program(slots, split),
        split,
        group.widens,
    )
    looked_up.meta["gathered"] = sum(m.bags * m.usual_length * m.lookup.dim for m in members)
    return looked_up


def _divider(lookup: Lookup) -> fx.Node | None:
    """Where each bag begins and ends, if bags are jagged."""
    if lookup.bags != "jagged":
        return None
    offsets = lookup.node.args[2]
    assert isinstance(offsets, fx.Node)
    return offsets


def _slot(
    member: _Member, group: TableGroup, home: _Home, ids: Ids, ends: int, factors: int
) -> LookupSlot:
    lookup = member.lookup
    return LookupSlot(
        bags=member.bags,
        base=group.start(lookup.weight),
        rows=lookup.rows,
        stride=lookup.dim,
        width=lookup.dim,
        ids_base=ids.base,
        ids_stride=ids.stride,
        length=_length(lookup),
        mean=lookup.pooling == "mean",
        out_base=home.start,
        out_stride=home.stride,
        offsets_base=ends,
        scales_base=factors,
        pairs_base=group.first_pair(lookup.weight),
    )


def _length(lookup: Lookup) -> int:
    """Ids of each bag; the room of all where bags are jagged."""
    return int(prod(lookup.ids.meta["val"].shape)) if lookup.bags == "jagged" else lookup.length


def _split(members: Sequence[_Member], itemsize: int) -> int:
    """How many threads share a bag: more where few bags are long, which would leave most of a
    device idle while a few threads walk. Only buckets of one split share a package."""
    threads = sum(-(-m.bags * m.lookup.dim // vector(itemsize)) for m in members)
    longest = max(m.usual_length for m in members)
    fitting = [s for s in SPLITS if s * UNROLL <= longest and s * threads <= _BUSY]
    return max(fitting, default=1)


def _rounded(count: int, unit: int) -> int:
    return -(-count // unit) * unit
