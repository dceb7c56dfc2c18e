"""A model with many independent features, each with an interaction of its own (StreamRec)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import DenseInput, Ranker, finish, id_list, scaled
from .layers import AttentionPooling, Table, mlp


class FeatureBranch(nn.Module):
    """One feature: lookup, attention pooling, interaction layer. ids `[B, L]` give `[B, dim]`."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.table = Table(rows, dim)
        self.pool = AttentionPooling(dim)
        self.interact = mlp((dim, dim))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.interact(self.pool(self.table.each(ids)))
        return out


class StreamRec(Ranker):
    """Independent branches, one per feature, and a trunk with a sigmoid over all of them.

    `ids` holds one `[B, L]` per feature; `dense` is `[B, D]`, absent when D is 0. Output `[B, 1]`.
    """

    def __init__(
        self, rows: list[int], dims: list[int], lookups: int, dense: int, trunk: Sequence[int]
    ) -> None:
        super().__init__()
        if lookups < 2:
            raise ValueError(f"attention needs at least 2 lookups per feature, got {lookups}")
        self.inputs = id_list(rows, lookups)
        if dense:
            self.inputs = (*self.inputs, DenseInput("dense", dense))
        self.branches = nn.ModuleList(
            FeatureBranch(n, dim) for n, dim in zip(rows, dims, strict=True)
        )
        self.trunk = mlp((sum(dims) + dense, *trunk), last="sigmoid")

    def forward(self, ids: list[Tensor], dense: Tensor | None = None) -> Tensor:
        vectors = [branch(i) for branch, i in zip(self.branches, ids, strict=True)]
        if dense is not None:
            vectors.append(dense)
        scores: Tensor = self.trunk(torch.cat(vectors, dim=1))
        return scores


def streamrec(
    *,
    features: int = 40,
    rows: int = 100_000,
    lookups: int = 20,
    dims: Sequence[int] = (8, 16, 32),
    dense: int = 13,
    trunk: Sequence[int] = (256, 128, 1),
    rows_scale: float = 1.0,
    seed: int = 0,
) -> StreamRec:
    """40 features of 100,000 rows, widths 8, 16, 32 in turn, 20 lookups each, 295 MB; `[B, 1]`.

    The shape of model that StreamRec (DASFAA 2023, doi 10.1007/978-3-031-30637-2_36) describes:
    dozens of sparse features, each with its own lookup and interaction, hence as many
    independent branches. Its models are not published, so every size here is ours.
    """
    widths = [dims[i % len(dims)] for i in range(features)]
    model = StreamRec([scaled(rows, rows_scale)] * features, widths, lookups, dense, trunk)
    return finish(model, seed)
