"""MicroRec's two production models: many tables of mixed sizes, one lookup each, one MLP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Ranker, finish, id_list, scaled
from .layers import Tables, mlp

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


def microrec_47(*, rows_scale: float = 1.0, seed: int = 0) -> MicroRec:
    """MicroRec's small model: 47 tables, 352 features, 1.41 GB; output `[B, 1]`.

    Table list: MicroRec (arXiv 2010.05894), from the authors' CPU baseline. MLP
    352-1024-512-256-1 as in their FPGA kernels; the sigmoid on top is ours. Their Keras model has
    batch normalisation after each hidden layer and a 128-wide softmax instead.
    """
    return _microrec(TABLES_47, rows_scale, seed)


def microrec_98(*, rows_scale: float = 1.0, seed: int = 0) -> MicroRec:
    """MicroRec's large model: 98 tables, 876 features, 15.11 GB; output `[B, 1]`.

    Table list and MLP (876-1024-512-256-1) as for `microrec_47`. The FPGA build pads the 876
    features to 880; there is no reason to do so here.
    """
    return _microrec(TABLES_98, rows_scale, seed)


def _microrec(groups: Sequence[tuple[int, int, int]], rows_scale: float, seed: int) -> MicroRec:
    rows = [scaled(n, rows_scale) for count, n, _ in groups for _ in range(count)]
    dims = [dim for count, _, dim in groups for _ in range(count)]
    return finish(MicroRec(rows, dims, HIDDEN), seed)
