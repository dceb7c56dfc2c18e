"""MicroRec's two production models: many tables of mixed sizes, one lookup each, one MLP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .base import Ranker, finish, id_list, scaled
from .cartesian import product_ids, product_table
from .layers import Linear, Table, Tables, mlp

HIDDEN = (1024, 512, 256)

# (number of tables, rows, width), in ascending order of width and rows.
TABLES_47: tuple[tuple[int, int, int], ...] = (
    (4, 100, 4),
    (2, 500, 4),
    (10, 1_000, 4),
    (1, 3_000, 8),
    (15, 10_000, 8),
    (1, 20_000, 8),
    (1, 30_000, 8),
    (10, 100_000, 8),
    (1, 500_000, 16),
    (1, 1_000_000, 16),
    (1, 10_000_000, 32),
)
TABLES_98: tuple[tuple[int, int, int], ...] = (
    (12, 100, 4),
    (6, 500, 4),
    (9, 1_000, 4),
    (14, 5_000, 8),
    (2, 15_000, 8),
    (30, 50_000, 8),
    (2, 100_000, 8),
    (2, 150_000, 8),
    (16, 500_000, 16),
    (2, 1_000_000, 16),
    (1, 5_000_000, 16),
    (1, 10_000_000, 32),
    (1, 100_000_000, 32),
)
# Places in those lists of the tables that MicroRec makes one, in two-way and three-way products.
# The 10,000,000-row table of the small model, which they cut in two by columns, is left whole.
PRODUCTS_47 = (*((i, 6 + i) for i in range(4)), (4, 10), (5, 11))
PRODUCTS_98 = (*((i, 18 + i) for i in range(9)), (12, 13), (14, 15), (9, 16), (10, 11, 17))


class MicroRec(Ranker):
    """Concatenated rows of all tables through one MLP: `ids` holds one `[B]` per table."""

    def __init__(self, rows: list[int], dims: list[int], hidden: Sequence[int]) -> None:
        super().__init__()
        self.inputs = id_list(rows)
        self.embed = Tables(rows, dims)
        self.top = mlp((sum(dims), *hidden, 1), last="sigmoid")

    def forward(self, ids: list[Tensor]) -> Tensor:
        scores: Tensor = self.top(torch.cat(self.embed(ids), dim=1))
        return scores


class CartesianMicroRec(Ranker):
    """A `MicroRec` some of whose tables are Cartesian products; the same scores for the same rows.

    `groups` are places of tables that become one, in front of those that stay. `ids` holds one
    `[B]` per table that is left; `joint_inputs` makes them of the separate model's.
    """

    def __init__(self, separate: MicroRec, groups: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        tables = [table for table in separate.embed.tables if isinstance(table, Table)]
        grouped = {place for group in groups for place in group}
        self.groups = (*groups, *((i,) for i in range(len(tables)) if i not in grouped))
        self.rows = [table.rows for table in tables]
        joint = [[tables[i] for i in group] for group in self.groups]
        rows = [math.prod(table.rows for table in group) for group in joint]
        self.inputs = id_list(rows)
        self.embed = Tables(rows, [sum(table.dim for table in group) for group in joint])
        for table, group in zip(self.embed.tables, joint, strict=True):
            assert isinstance(table, Table)
            table.weight.data = product_table([t.weight.data for t in group])
        self.top = separate.top
        first = self.top[0]
        assert isinstance(first, Linear)
        columns = torch.split(first.weight.data, [table.dim for table in tables], dim=1)
        first.weight.data = torch.cat([columns[i] for group in self.groups for i in group], dim=1)

    def forward(self, ids: list[Tensor]) -> Tensor:
        scores: Tensor = self.top(torch.cat(self.embed(ids), dim=1))
        return scores

    def joint_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The request of this model that asks for the same rows as one of the separate model."""
        joint = {}
        for i, group in enumerate(self.groups):
            ids = [inputs[f"ids_{place}"] for place in group]
            joint[f"ids_{i}"] = product_ids(ids, [self.rows[place] for place in group])
        return joint


def microrec_47(*, rows_scale: float = 1.0, seed: int = 0, cartesian: bool = False) -> Ranker:
    """MicroRec's small model: 47 tables, 352 features, 1.41 GB; output `[B, 1]`.

    Table list: MicroRec (arXiv 2010.05894), from the authors' CPU baseline. MLP
    352-1024-512-256-1 as in their FPGA kernels; the sigmoid on top is ours. Their Keras model has
    batch normalisation after each hidden layer and a 128-wide softmax instead. `cartesian`: twelve
    small tables are six products, 41 tables and 3.2 % more bytes in all.
    """
    return _microrec(TABLES_47, PRODUCTS_47 if cartesian else (), rows_scale, seed)


def microrec_98(*, rows_scale: float = 1.0, seed: int = 0, cartesian: bool = False) -> Ranker:
    """MicroRec's large model: 98 tables, 876 features, 15.11 GB; output `[B, 1]`.

    Table list and MLP (876-1024-512-256-1) as for `microrec_47`. The FPGA build pads the 876
    features to 880; there is no reason to do so here. `cartesian`: 27 small tables are 13
    products, 84 tables and 1.9 % more bytes in all.
    """
    return _microrec(TABLES_98, PRODUCTS_98 if cartesian else (), rows_scale, seed)


def _microrec(
    listed: Sequence[tuple[int, int, int]],
    groups: Sequence[tuple[int, ...]],
    rows_scale: float,
    seed: int,
) -> Ranker:
    rows = [scaled(n, rows_scale) for count, n, _ in listed for _ in range(count)]
    dims = [dim for count, _, dim in listed for _ in range(count)]
    model = finish(MicroRec(rows, dims, HIDDEN), seed)
    return CartesianMicroRec(model, groups).eval() if groups else model
