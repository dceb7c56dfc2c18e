"""`recreplay::jagged_bags`: bags of float32 rows of any lengths, of several tables in one.

Packages call `jagged_bags.h` of `recreplay.capture.compilers`; what is below runs where no package
is: in tracing and in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from recreplay.runtime.own_operator import define_operator


@cache
def jagged_bags_operator() -> Callable[..., Any]:
    """The operator, defined when it is first asked for.

    `jagged_bags(table, ids, ends, spots, divisions, mean) -> float32 [features * bags, dim]`:
    `table` float32 `[rows, dim]`, `ids` and `ends` int32 or int64, flat; of `divisions` there are
    `bags + 2` ends each, the last of which is not read. `spots` int64 `[features, 3]` says of each
    feature where its ids begin, where its ends do, and the row that its ids count from. Its bag b
    pools its ids from number `ends[b]` to before `ends[b + 1]`, by their sum or their mean, which
    of none is 0.
    """
    schema = "Tensor table, Tensor ids, Tensor ends, Tensor spots, int divisions, bool mean"
    return define_operator("jagged_bags", schema, _bags, _shape)


def _shape(
    table: Tensor, _ids: Tensor, ends: Tensor, spots: Tensor, divisions: int, _mean: bool
) -> Tensor:
    bags = ends.shape[0] // divisions - 2
    return table.new_empty([spots.shape[0] * bags, table.shape[1]])


def _bags(
    table: Tensor, ids: Tensor, ends: Tensor, spots: Tensor, divisions: int, mean: bool
) -> Tensor:
    bags = len(ends) // divisions - 2
    pooled = []
    for base, begin, first in spots.tolist():
        for b in range(begin, begin + bags):
            rows = table[ids[base + int(ends[b]) : base + int(ends[b + 1])] + first]
            pooled.append(rows.sum(0) / max(len(rows), 1) if mean else rows.sum(0))
    return torch.stack(pooled)
