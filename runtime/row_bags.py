"""`recreplay::row_bags`, `recreplay::weighted_bags`: bags of float32 rows, all of one length.

torch's `embedding_bag` makes three more results, and of stacked tables it wants the row in the
stack for every id. Packages call `row_bags.h` and `weighted_bags.h` of
`recreplay.capture.compilers`; what is below runs where no package is: in tracing and in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from recreplay.runtime.own_operator import define_operator


@cache
def row_bags_operator() -> Callable[..., Any]:
    """The operator, defined when it is first asked for.

    `row_bags(table, ids, first, length, mean) -> float32 [bags, dim]`: `table` float32
    `[rows, dim]`, `ids` int32 or int64 of any shape, every `length` of which, one after another,
    are a bag; their sum, or their mean. `first`, of the ids' dtype `[bags]` or None: the row that
    the ids of each bag count from.
    """
    schema = "Tensor table, Tensor ids, Tensor? first, int length, bool mean"
    return define_operator("row_bags", schema, _bags, _shape)


@cache
def weighted_bags_operator() -> Callable[..., Any]:
    """The operator, defined when it is first asked for.

    `weighted_bags(table, ids, factors, length, masks) -> float32 [bags, dim]`: as `row_bags`, of
    rows that are multiplied by `factors`, float32, one for each id. With `masks`, rows of factor 0
    are left out, also where no number is in them.
    """
    schema = "Tensor table, Tensor ids, Tensor factors, int length, bool masks"
    return define_operator("weighted_bags", schema, _weighted, _weighted_shape)


def _shape(table: Tensor, ids: Tensor, _first: Any, length: int, _mean: bool) -> Tensor:
    return table.new_empty([ids.numel() // length, table.shape[1]])


def _bags(table: Tensor, ids: Tensor, first: Tensor | None, length: int, mean: bool) -> Tensor:
    bags = ids.reshape(-1, length)
    if first is not None:
        bags = bags + first.unsqueeze(1)
    rows = table[bags]
    return rows.mean(1) if mean else rows.sum(1)


def _weighted_shape(
    table: Tensor, ids: Tensor, _factors: Tensor, length: int, _masks: bool
) -> Tensor:
    return _shape(table, ids, None, length, False)


def _weighted(table: Tensor, ids: Tensor, factors: Tensor, length: int, masks: bool) -> Tensor:
    rows, by_row = table[ids.reshape(-1, length)], factors.reshape(-1, length, 1)
    if masks:
        rows = rows.masked_fill(by_row == 0, 0.0)
    return (rows * by_row).sum(1)
