"""Cartesian tables, as MicroRec has them: several small ones as one, a row for each combination.

A lookup in such a table takes the place of two or three. What that gains is a number of memory
accesses, and what it costs is storage: the product of the rows times the sum of the widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def product_table(tables: Sequence[Tensor]) -> Tensor:
    """All combinations of rows: tables `[n_i, d_i]` give `[n_0 * n_1 * ..., d_0 + d_1 + ...]`.

    The last table's row changes fastest, as in `product_ids`.
    """
    made = tables[0]
    for table in tables[1:]:
        n, m = len(made), len(table)
        pairs = made[:, None].expand(n, m, -1), table[None].expand(n, m, -1)
        made = torch.cat(pairs, dim=2).flatten(0, 1)
    return made


def product_ids(ids: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """The rows of a product table for ids `[B]` of its tables, which have so many `rows` each."""
    made = ids[0]
    for further, n in zip(ids[1:], rows[1:], strict=True):
        made = made * n + further
    return made
