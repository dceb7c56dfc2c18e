"""Wide & Deep and its multi-task form, in the sizes of DeepRecInfra."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import DenseInput, Ranker, finish, id_list, scaled
from .layers import Tables, mlp


class WideDeep(Ranker):
    """Raw dense values beside one row of each table, through one MLP with a sigmoid.

    `dense` is `[B, D]`, `ids` holds one `[B]` per table; the output is `[B, top[-1]]`.
    """

    def __init__(self, rows: list[int], dim: int, dense: int, top: Sequence[int]) -> None:
        super().__init__()
        self.inputs = (DenseInput("dense", dense), *id_list(rows))
        self.embed = Tables(rows, [dim] * len(rows))
        self.top = mlp((dense + dim * len(rows), *top), last="sigmoid")

    def forward(self, dense: Tensor, ids: list[Tensor]) -> Tensor:
        scores: Tensor = self.top(torch.cat([dense, *self.embed(ids)], dim=1))
        return scores


class MtWideDeep(Ranker):
    """Wide & Deep with a shared MLP and one tower per task.

    Inputs as `WideDeep`; the output maps `task_0`, `task_1`, ... to `[B, tower[-1]]`.
    """

    def __init__(
        self,
        rows: list[int],
        dim: int,
        dense: int,
        shared: Sequence[int],
        tower: Sequence[int],
        tasks: int,
    ) -> None:
        super().__init__()
        self.inputs = (DenseInput("dense", dense), *id_list(rows))
        self.embed = Tables(rows, [dim] * len(rows))
        self.shared = mlp((dense + dim * len(rows), *shared))
        self.towers = nn.ModuleList(mlp((shared[-1], *tower), last="sigmoid") for _ in range(tasks))

    def forward(self, dense: Tensor, ids: list[Tensor]) -> dict[str, Tensor]:
        shared = self.shared(torch.cat([dense, *self.embed(ids)], dim=1))
        return {f"task_{i}": tower(shared) for i, tower in enumerate(self.towers)}


def wide_deep(
    *,
    tables: int = 27,
    rows: int = 1_000_000,
    dim: int = 32,
    dense: int = 512,
    top: Sequence[int] = (1024, 512, 256, 1),
    rows_scale: float = 1.0,
    seed: int = 0,
) -> WideDeep:
    """Wide & Deep: 27 tables of 1,000,000 rows, 3.46 GB; 1376-1024-512-256-1; output `[B, 1]`.

    Architecture: Cheng et al., arXiv 1606.07792. Sizes and form: DeepRecInfra
    (arXiv 2001.02772), `wide_and_deep.json`. Like the DeepRecSys code, and unlike the paper,
    there is no separate linear (wide) part: the 512 dense values go straight into the deep one.
    """
    model = WideDeep([scaled(rows, rows_scale)] * tables, dim, dense, top)
    return finish(model, seed)


def mt_wide_deep(
    *,
    tasks: int = 8,
    dim: int = 32,
    dense: int = 512,
    shared: Sequence[int] = (1024, 512),
    tower: Sequence[int] = (256, 128),
    rows_scale: float = 1.0,
    seed: int = 0,
) -> MtWideDeep:
    """Multi-task Wide & Deep: 43 tables (41 x 500,000 and 2 x 5,000,000 rows), 3.90 GB.

    Shared 1888-1024-512, then 512-256-128 with a sigmoid for each task. Sizes: DeepRecInfra
    (arXiv 2001.02772), `mtwnd.json`. The towers end 128 wide without a scalar head, as in the
    DeepRecSys code; `tower=(256, 128, 1)` adds one. That code runs one task unless told
    otherwise; eight is what its RecSSD fork runs.
    """
    rows = [scaled(n, rows_scale) for n in [500_000] * 41 + [5_000_000] * 2]
    return finish(MtWideDeep(rows, dim, dense, shared, tower, tasks), seed)
