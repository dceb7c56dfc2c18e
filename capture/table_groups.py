"""Tables of one dtype in one flat storage, whatever their width: what a grouped lookup reads.

The dtype is the one that they are stored in: tables that are lowered have a storage of their own,
and those with int8 rows a second one, `pairs`, for the scale and offset of each row. Each table
stays a view by rows, so that it can be refreshed alone. A stack of tables of one width, which other
buckets may read, is a view of the same storage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from recreplay.capture.lookups import find_lookups
from recreplay.capture.lowering import NOTHING, Lowering
from recreplay.capture.program import Program
from recreplay.capture.weight_stacks import WeightStack, lay_end_to_end
from recreplay.runtime.lowered import SCALES
from recreplay.runtime.manifest import TableView

GROUPED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Shapes = Mapping[str, tuple[int, int]]  # rows and width of each table


@dataclass(frozen=True)
class TableGroup:
    """`flat.starts[i]` is the first element of table `flat.members[i]`, `shapes[i]`.

    `stacks` are those inside of it. `dtype` is that of the storage; `widens`: whether lookups give
    float32 in its place. `pairs` has the same members, by rows.
    """

    flat: WeightStack
    shapes: tuple[tuple[int, int], ...]
    stacks: tuple[WeightStack, ...]
    dtype: torch.dtype
    widens: bool
    pairs: WeightStack | None

    @property
    def name(self) -> str:
        return self.flat.name

    def start(self, table: str) -> int:
        return self.flat.starts[self.flat.members.index(table)]

    def first_pair(self, table: str) -> int:
        """The row of `pairs` where those of a table begin; 0 where rows have none."""
        return 0 if self.pairs is None else self.pairs.starts[self.pairs.members.index(table)]

    def views(self, read: set[str]) -> dict[str, TableView]:
        """Where all tables lie; `read`: the names of the stacks that are read too."""
        found: dict[str, TableView] = {}

        def add(name: str, rows: int, dim: int, table: str, row: int) -> None:
            """What begins `row` rows before a table."""
            found[name] = TableView(self.name, self.start(table) - row * dim, rows, (dim,))
            if self.pairs is not None:
                first = self.first_pair(table) - row
                found[SCALES + name] = TableView(self.pairs.name, first, rows)

        shapes = dict(zip(self.flat.members, self.shapes, strict=True))
        for stack in self.stacks:
            if stack.name in read:
                add(stack.name, stack.rows, prod(stack.row), stack.members[0], stack.starts[0])
                for table, row in zip(stack.members, stack.starts, strict=True):
                    found[table] = TableView(stack.name, row, shapes[table][0])
        for table, (rows, dim) in shapes.items():
            if table not in found:
                add(table, rows, dim, table, 0)
        return found

    def store(self, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is stored for the group; `parts` are those of each table by itself."""
        stored = {self.name: self.flat.store(parts)}
        if self.pairs is not None:
            pairs = {table: parts[SCALES + table] for table in self.pairs.members}
            stored[self.pairs.name] = self.pairs.store(pairs)
        return stored


def plan_groups(
    program: Program, stacks: Sequence[WeightStack], lowering: Lowering = NOTHING
) -> list[TableGroup]:
    """The groups of a program: tables that are stored alike, and whose lookups give the same dtype.

    The same for every bucket.
    """
    tables: dict[tuple[torch.dtype, torch.dtype], dict[str, tuple[int, int]]] = defaultdict(dict)
    for lookup in find_lookups(program):
        given = lookup.output.meta["val"].dtype if lookup.bags else None
        if given in GROUPED_DTYPES:
            stored = lowering.dtype(lookup.weight) or given
            tables[stored, given][lookup.weight] = (lookup.rows, lookup.dim)
    return [_group(stored, given, shapes, stacks) for (stored, given), shapes in tables.items()]


def _group(
    stored: torch.dtype, given: torch.dtype, shapes: Shapes, stacks: Sequence[WeightStack]
) -> TableGroup:
    inside = tuple(stack for stack in stacks if all(table in shapes for table in stack.members))
    stacked = {table for stack in inside for table in stack.members}
    parts = {stack.name: (stack.rows, prod(stack.row)) for stack in inside}
    parts |= {table: shape for table, shape in shapes.items() if table not in stacked}
    name = f"group_{_short(stored)}" + (f"_as_{_short(given)}" if stored != given else "")
    flat = lay_end_to_end(name, {k: prod(shape) for k, shape in parts.items()}, (), stored)
    pairs = None
    if stored == torch.uint8:
        rows = {k: count for k, (count, _) in parts.items()}
        pairs = _by_table(
            lay_end_to_end(f"{name}_pairs", rows, (2,), torch.float32), inside, shapes
        )
    return TableGroup(
        flat=_by_table(flat, inside, shapes),
        shapes=tuple(shapes.values()),
        stacks=inside,
        dtype=stored,
        widens=stored != given,
        pairs=pairs,
    )


def _by_table(parts: WeightStack, stacks: Sequence[WeightStack], shapes: Shapes) -> WeightStack:
    """A storage of stacks and tables, by its tables alone."""
    at = dict(zip(parts.members, parts.starts, strict=True))
    for stack in stacks:
        step = 1 if parts.row else prod(stack.row)  # a flat storage counts elements
        for table, row in zip(stack.members, stack.starts, strict=True):
            at[table] = at[stack.name] + row * step
    return replace(parts, members=tuple(shapes), starts=tuple(at[table] for table in shapes))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
