"""Layers that the reference models share.

Shapes use B for the batch, L for the lookups of one feature, T for a sequence, d for a width.
Nothing here depends on the values of its inputs, and every constant is a buffer, so each layer
exports with a dynamic batch and moves between devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HE_GAIN = math.sqrt(2.0)  # keeps the second moment through a ReLU
Last = Literal["relu", "sigmoid", "softmax", "none"]


class Linear(nn.Linear):
    """A linear layer whose weights stay unset until `finish` draws them from the model's seed.

    The stock constructor draws from the global generator: work thrown away, and a side effect on
    the caller's random numbers. `gain` is the factor on `1 / sqrt(in_features)`.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, gain: float = HE_GAIN
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device="meta")
        self.to_empty(device=torch.get_default_device())
        self.gain = gain


class Table(nn.Module):
    """One embedding table `[rows, dim]`, float32.

    ids `[B]` give `[B, dim]`; ids `[B, L]` are summed to `[B, dim]`. `scale` is the standard
    deviation of the weights; the default makes a sum over `lookups` rows of order one.
    """

    def __init__(
        self, rows: int, dim: int, *, lookups: int = 1, scale: float | None = None
    ) -> None:
        super().__init__()
        self.rows = rows
        self.dim = dim
        self.scale = lookups**-0.5 if scale is None else scale
        self.weight = nn.Parameter(torch.empty(rows, dim), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        if ids.dim() == 1:
            return F.embedding(ids, self.weight)
        return F.embedding_bag(ids, self.weight, mode="sum")

    def each(self, ids: Tensor) -> Tensor:
        """Rows without pooling: ids `[B, L]` give `[B, L, dim]`."""
        return F.embedding(ids, self.weight)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.dim}"


class Tables(nn.Module):
    """Embedding tables read by a list of ids, one item per table: gives a list of `[B, dim_i]`."""

    def __init__(
        self,
        rows: Sequence[int],
        dims: Sequence[int],
        *,
        lookups: int = 1,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            Table(n, dim, lookups=lookups, scale=scale) for n, dim in zip(rows, dims, strict=True)
        )

    def forward(self, ids: list[Tensor]) -> list[Tensor]:
        return [table(i) for table, i in zip(self.tables, ids, strict=True)]


def mlp(widths: Sequence[int], last: Last = "relu") -> nn.Sequential:
    """Linear layers `widths[0] -> widths[1] -> ...` with ReLU between, and `last` at the end."""
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(pairwise(widths)):
        final = i == len(widths) - 2
        hidden = not final or last == "relu"
        layers.append(Linear(n, m, gain=HE_GAIN if hidden else 1.0))
        if hidden:
            layers.append(nn.ReLU())
        elif last == "sigmoid":
            layers.append(nn.Sigmoid())
        elif last == "softmax":
            layers.append(nn.Softmax(dim=-1))
    return nn.Sequential(*layers)


class DotInteraction(nn.Module):
    """Dot products of all pairs of distinct vectors: F tensors `[B, d]` give `[B, F(F-1)/2]`.

    All F*F products come from one batched matrix product; the pairs below the diagonal are then
    picked, row by row, by indices held as a buffer.
    """

    pairs: Tensor

    def __init__(self, vectors: int) -> None:
        super().__init__()
        below = [i * vectors + j for i in range(vectors) for j in range(i)]
        self.register_buffer("pairs", torch.tensor(below, dtype=torch.int64))

    def forward(self, vectors: list[Tensor]) -> Tensor:
        stacked = torch.stack(vectors, dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2)).flatten(1)
        return products.index_select(1, self.pairs)


class AttentionPooling(nn.Module):
    """A mean over L, weighted by a softmax of one learned score: `[B, L, d]` to `[B, d]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = Linear(dim, 1, gain=1.0)

    def forward(self, items: Tensor) -> Tensor:
        weights = torch.softmax(self.score(items), dim=1)
        return (weights * items).sum(dim=1)


class Behaviours(nn.Module):
    """The embedded history of a user: ids `[B, T]`, 0 where empty, give `[B, T, dim]`.

    One table for all positions, as the DIN and DIEN papers have it, or (`per_position`) one table
    per position, as DeepRecInfra builds them.
    """

    def __init__(self, rows: int, dim: int, length: int, *, per_position: bool) -> None:
        super().__init__()
        self.per_position = per_position
        self.tables = nn.ModuleList(Table(rows, dim) for _ in range(length if per_position else 1))

    def forward(self, ids: Tensor) -> Tensor:
        if self.per_position:
            columns = [table(ids.select(1, t)) for t, table in enumerate(self.tables)]
            return torch.stack(columns, dim=1)
        shared = self.tables[0]
        assert isinstance(shared, Table)
        return shared.each(ids)
