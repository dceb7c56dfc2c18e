"""Tables of one dtype in one flat storage, whatever their width: what a grouped lookup reads.

Each table stays a view by rows, so that it can be refreshed alone. A stack of tables of one width,
which other buckets may read, is a view of the same storage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from recreplay.capture.lookups import find_lookups
from recreplay.capture.lowering import NOTHING, Lowering
from recreplay.capture.specialise import Program
from recreplay.capture.weight_stacks import WeightStack, lay_end_to_end
from recreplay.runtime.manifest import TableView

GROUPED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class TableGroup:
    """`flat.starts[i]` is the first element of table `flat.members[i]`, `[rows, *rows_of[i]]`.

    `stacks` are those inside of it, and the first element of each.
    """

    flat: WeightStack
    shapes: tuple[tuple[int, ...], ...]
    stacks: tuple[tuple[WeightStack, int], ...]

    @property
    def name(self) -> str:
        return self.flat.name

    def start(self, table: str) -> int:
        return self.flat.starts[self.flat.members.index(table)]

    def views(self, read: set[str]) -> dict[str, TableView]:
        """Where all tables lie; `read`: the names of the stacks that are read too."""
        found: dict[str, TableView] = {}
        for stack, start in self.stacks:
            if stack.name in read:
                found[stack.name] = TableView(self.name, start, stack.rows, stack.row)
        for table, start, (rows, *row) in zip(
            self.flat.members, self.flat.starts, self.shapes, strict=True
        ):
            found[table] = TableView(self.name, start, rows, tuple(row))
        for stack, _ in self.stacks:
            if stack.name in read:
                for table, begin in zip(stack.members, stack.starts, strict=True):
                    found[table] = TableView(stack.name, begin, found[table].rows)
        return found


def plan_groups(
    program: Program, stacks: Sequence[WeightStack], lowering: Lowering = NOTHING
) -> list[TableGroup]:
    """The groups of a program, one for each dtype. The same for every bucket.

    Tables that are stored in a lower type are left to be stacked: the kernel writes what it reads.
    """
    tables: dict[torch.dtype, dict[str, tuple[int, int]]] = defaultdict(dict)
    for lookup in find_lookups(program):
        dtype = lookup.output.meta["val"].dtype if lookup.bags else None
        if dtype in GROUPED_DTYPES and lookup.weight not in lowering.tables:
            tables[dtype][lookup.weight] = (lookup.rows, lookup.dim)
    return [_group(dtype, shapes, stacks) for dtype, shapes in tables.items()]


def _group(
    dtype: torch.dtype, shapes: Mapping[str, tuple[int, int]], stacks: Sequence[WeightStack]
) -> TableGroup:
    inside = [stack for stack in stacks if all(table in shapes for table in stack.members)]
    stacked = {table for stack in inside for table in stack.members}
    sizes = {stack.name: stack.rows * prod(stack.row) for stack in inside}
    sizes |= {table: prod(shape) for table, shape in shapes.items() if table not in stacked}
    name = f"group_{str(dtype).removeprefix('torch.')}"
    parts = lay_end_to_end(name, sizes, (), dtype)
    at = dict(zip(parts.members, parts.starts, strict=True))
    for stack in inside:
        for table, row in zip(stack.members, stack.starts, strict=True):
            at[table] = at[stack.name] + row * prod(stack.row)
    flat = WeightStack(
        name, tuple(shapes), tuple(at[table] for table in shapes), parts.rows, parts.row
    )
    return TableGroup(
        flat, tuple(shapes.values()), tuple((stack, at[stack.name]) for stack in inside)
    )
