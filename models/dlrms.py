"""DLRM: the general form and the three production classes RMC1, RMC2 and RMC3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .base import DenseInput, Ranker, finish, id_list, scaled
from .layers import DotInteraction, Tables, mlp

Interaction = Literal["cat", "dot"]


class Dlrm(Ranker):
    """Bottom MLP over dense values, pooled lookups, an interaction, top MLP with a sigmoid.

    `dense` is `[B, D]`; `ids` holds one `[B, L]` per table (`[B]` when L is 1). The interaction
    concatenates the vectors (`cat`), or concatenates the bottom's output with the dot products of
    all pairs (`dot`). The bottom must end at the width of the tables. Output `[B, top[-1]]`.
    """

    def __init__(
        self,
        rows: list[int],
        lookups: int,
        dim: int,
        dense: int,
        bottom: Sequence[int],
        top: Sequence[int],
        interaction: Interaction,
    ) -> None:
        super().__init__()
        if bottom[-1] != dim:
            raise ValueError(f"bottom ends at width {bottom[-1]}, but tables are {dim} wide")
        self.inputs = (DenseInput("dense", dense), *id_list(rows, lookups))
        self.bottom = mlp((dense, *bottom))
        vectors = len(rows) + 1
        self.dot: DotInteraction | None
        scale = lookups**-0.5
        if interaction == "dot":
            self.dot = DotInteraction(vectors)
            crossed = dim + vectors * (vectors - 1) // 2
            scale *= dim**-0.25  # dot products of two embeddings are then of order one
        elif interaction == "cat":
            self.dot = None
            crossed = dim * vectors
        else:
            raise ValueError(f"interaction must be 'cat' or 'dot', got {interaction!r}")
        self.embed = Tables(rows, [dim] * len(rows), lookups=lookups, scale=scale)
        self.top = mlp((crossed, *top), last="sigmoid")

    def forward(self, dense: Tensor, ids: list[Tensor]) -> Tensor:
        bottom: Tensor = self.bottom(dense)
        vectors: list[Tensor] = [bottom, *self.embed(ids)]
        if self.dot is not None:
            vectors = [bottom, self.dot(vectors)]
        scores: Tensor = self.top(torch.cat(vectors, dim=1))
        return scores


def dlrm(
    *,
    tables: int = 26,
    rows: int | Sequence[int] = 100_000,
    lookups: int = 20,
    dim: int = 32,
    dense: int = 13,
    bottom: Sequence[int] | None = None,
    top: Sequence[int] = (256, 64, 1),
    interaction: Interaction = "cat",
    rows_scale: float = 1.0,
    seed: int = 0,
) -> Dlrm:
    """A DLRM of any size: by default 26 tables of 100,000 rows x 32, 20 lookups each, 333 MB.

    `rows` is one count for all tables, or one count per table (`tables` is then ignored).
    `bottom` defaults to `(64, dim)`; the MLPs follow RMC1. The default is RecReplay's benchmark
    model: the 26 categorical and 13 dense features of Criteo with multi-hot lookups, not a
    published configuration. Architecture: Naumov et al., arXiv 1906.00091.
    """
    counts = [rows] * tables if isinstance(rows, int) else list(rows)
    model = Dlrm(
        [scaled(n, rows_scale) for n in counts],
        lookups,
        dim,
        dense,
        (64, dim) if bottom is None else bottom,
        top,
        interaction,
    )
    return finish(model, seed)


def dlrm_rmc1(*, rows_scale: float = 1.0, seed: int = 0) -> Dlrm:
    """DLRM-RMC1: 8 tables of 4,000,000 rows x 32, 80 lookups each, 4.10 GB; output `[B, 1]`.

    Bottom 128-64-32, top 288-256-64-1, concatenation. Bound by lookups. Sizes: DeepRecInfra
    (arXiv 2001.02772), `dlrm_rm1.json`.
    """
    return dlrm(
        tables=8,
        rows=4_000_000,
        lookups=80,
        dim=32,
        dense=128,
        bottom=(64, 32),
        top=(256, 64, 1),
        rows_scale=rows_scale,
        seed=seed,
    )


def dlrm_rmc2(*, rows_scale: float = 1.0, seed: int = 0) -> Dlrm:
    """DLRM-RMC2: 32 tables of 500,000 rows x 64, 120 lookups each, 4.10 GB; output `[B, 1]`.

    Bottom 256-128-64, top 2112-128-64-1, concatenation. Bound by memory bandwidth: 983 KB of
    rows an item. Sizes: DeepRecInfra (arXiv 2001.02772), `dlrm_rm2.json`.
    """
    return dlrm(
        tables=32,
        rows=500_000,
        lookups=120,
        dim=64,
        dense=256,
        bottom=(128, 64),
        top=(128, 64, 1),
        rows_scale=rows_scale,
        seed=seed,
    )


def dlrm_rmc3(*, rows_scale: float = 1.0, seed: int = 0) -> Dlrm:
    """DLRM-RMC3: 10 tables of 2,000,000 rows x 32, 20 lookups each, 2.56 GB; output `[B, 1]`.

    Bottom 2560-1024-256-32, top 352-512-256-1, concatenation. Bound by matrix products. Sizes:
    DeepRecInfra (arXiv 2001.02772), `dlrm_rm3.json`.
    """
    return dlrm(
        tables=10,
        rows=2_000_000,
        lookups=20,
        dim=32,
        dense=2560,
        bottom=(1024, 256, 32),
        top=(512, 256, 1),
        rows_scale=rows_scale,
        seed=seed,
    )
