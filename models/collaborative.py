"""Neural collaborative filtering (NCF), in the sizes of DeepRecInfra."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import IdInput, Ranker, finish, scaled
from .layers import Table, mlp


class Ncf(Ranker):
    """A matrix-factorisation branch and an MLP branch over one user and one item.

    `user` and `item` are ids `[B]`, each read from two tables; the output is `[B, head]`.
    """

    def __init__(self, users: int, items: int, dim: int, hidden: Sequence[int], head: int) -> None:
        super().__init__()
        self.inputs = (IdInput("user", users), IdInput("item", items))
        self.user_mf = Table(users, dim)
        self.user_mlp = Table(users, dim)
        self.item_mf = Table(items, dim)
        self.item_mlp = Table(items, dim)
        self.mlp = mlp((2 * dim, *hidden))
        self.head = mlp((dim + hidden[-1], head), last="sigmoid" if head == 1 else "relu")

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        factors = self.user_mf(user) * self.item_mf(item)
        deep = self.mlp(torch.cat([self.user_mlp(user), self.item_mlp(item)], dim=1))
        scores: Tensor = self.head(torch.cat([factors, deep], dim=1))
        return scores


def ncf(
    *,
    users: int = 140_000,
    items: int = 28_000,
    dim: int = 64,
    hidden: Sequence[int] = (256, 256, 128, 64),
    head: int = 64,
    rows_scale: float = 1.0,
    seed: int = 0,
) -> Ncf:
    """NCF: 4 tables of 140,000 x2 and 28,000 x2 rows, 86 MB; output `[B, 64]`.

    Architecture: He et al., arXiv 1708.05031. Sizes: DeepRecInfra (arXiv 2001.02772), `ncf.json`;
    they match the users and items of MovieLens-20M. Differences from the DeepRecSys code: it adds
    the two factor vectors where the paper (and this model) multiplies them element by element;
    it feeds four independent ids, pairing the two 140,000-row tables in one branch and the two
    28,000-row ones in the other, where here a user has 140,000 rows in both branches. Its last
    layer is 64 wide with a ReLU and no scalar head, which is kept; `head=1` is the paper's
    sigmoid score.
    """
    model = Ncf(scaled(users, rows_scale), scaled(items, rows_scale), dim, hidden, head)
    return finish(model, seed)
