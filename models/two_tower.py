"""A two-tower ranker: a user with jagged histories, and candidates with jagged tags."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import DenseInput, IdInput, JaggedInput, Ranker, finish, scaled
from .layers import Table, mlp


class TwoTower(Ranker):
    """A user tower, an item tower, and an MLP over both and their product.

    The user is `user` `[B]`, `profile` `[B, P]` and two histories pooled by their mean, `watched`
    and `searched`, each with its offsets; the item is `item` `[B]`, its `tags`, pooled by a sum,
    and `context` `[B, C]`. Output `[B, 1]`. `user_inputs` are what the candidates of one request
    have in common.
    """

    user_inputs = (
        "user",
        "profile",
        "watched",
        "watched_offsets",
        "searched",
        "searched_offsets",
    )

    def __init__(
        self,
        rows: tuple[int, int, int, int, int],
        dim: int,
        profile: int,
        context: int,
        lengths: tuple[float, float, float],
        tower: Sequence[int],
        top: Sequence[int],
    ) -> None:
        super().__init__()
        users, videos, queries, items, tags = rows
        self.inputs = (
            IdInput("user", users),
            DenseInput("profile", profile),
            JaggedInput("watched", videos, lengths[0]),
            JaggedInput("searched", queries, lengths[1]),
            IdInput("item", items),
            JaggedInput("tags", tags, lengths[2]),
            DenseInput("context", context),
        )
        self.user = Table(users, dim)
        # The mean of n rows is n**-0.5 of one row.
        self.watched = Table(videos, dim, scale=lengths[0] ** 0.5)
        self.searched = Table(queries, dim, scale=lengths[1] ** 0.5)
        self.item = Table(items, dim)
        self.tags = Table(tags, dim, scale=lengths[2] ** -0.5)
        self.user_tower = mlp((3 * dim + profile, *tower))
        self.item_tower = mlp((2 * dim + context, *tower))
        self.top = mlp((3 * tower[-1], *top), last="sigmoid")

    def forward(
        self,
        user: Tensor,
        profile: Tensor,
        watched: Tensor,
        watched_offsets: Tensor,
        searched: Tensor,
        searched_offsets: Tensor,
        item: Tensor,
        tags: Tensor,
        tags_offsets: Tensor,
        context: Tensor,
    ) -> Tensor:
        histories = [
            _pooled(self.watched, watched, watched_offsets, "mean"),
            _pooled(self.searched, searched, searched_offsets, "mean"),
        ]
        person = self.user_tower(torch.cat([self.user(user), *histories, profile], dim=1))
        described = _pooled(self.tags, tags, tags_offsets, "sum")
        thing = self.item_tower(torch.cat([self.item(item), described, context], dim=1))
        scores: Tensor = self.top(torch.cat([person, thing, person * thing], dim=1))
        return scores


def _pooled(table: Table, ids: Tensor, offsets: Tensor, mode: str) -> Tensor:
    return F.embedding_bag(ids, table.weight, offsets, mode=mode, include_last_offset=True)


def two_tower(
    *,
    dim: int = 32,
    profile: int = 16,
    context: int = 8,
    lengths: tuple[float, float, float] = (50.0, 10.0, 3.0),
    tower: Sequence[int] = (256, 64),
    top: Sequence[int] = (128, 1),
    rows_scale: float = 1.0,
    seed: int = 0,
) -> TwoTower:
    """1,000,000 users, videos and items, 200,000 queries, 10,000 tags, 32 wide, 411 MB; `[B, 1]`.

    The user side follows the ranking network of Covington, Adams and Sargin, "Deep Neural Networks
    for YouTube Recommendations" (RecSys 2016, doi 10.1145/2959100.2959190): watched videos and
    searched queries of varying number, each averaged. `lengths` are mean numbers of watched,
    searched and tags. The paper's sizes are not published, so every size here is ours, and so are
    the item tower and the product.
    """
    million, queries, tags = (scaled(n, rows_scale) for n in (1_000_000, 200_000, 10_000))
    rows = (million, million, queries, million, tags)
    return finish(TwoTower(rows, dim, profile, context, lengths, tower, top), seed)
