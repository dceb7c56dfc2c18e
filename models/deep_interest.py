"""Deep Interest Network (DIN): attention of the candidate over a user's behaviours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import IdInput, Ranker, finish, scaled
from .layers import Behaviours, Linear, Table, mlp


class ActivationUnit(nn.Module):
    """The local activation unit: how much each behaviour matters to this candidate.

    behaviours `[B, T, d]` and candidate `[B, d]` give weights `[B, T]`, which are not normalised:
    their sum tells how strong the interest is.
    """

    def __init__(self, dim: int, hidden: int, length: int) -> None:
        super().__init__()
        self.hidden = Linear(3 * dim, hidden)
        self.act = nn.PReLU()
        # A sum over the behaviours follows; this gain keeps it of order one.
        self.weight = Linear(hidden, 1, gain=length**-0.5)

    def forward(self, behaviours: Tensor, candidate: Tensor) -> Tensor:
        beside = candidate.unsqueeze(1).expand_as(behaviours)
        seen = torch.cat([behaviours, behaviours * beside, beside], dim=2)
        weights: Tensor = self.weight(self.act(self.hidden(seen)))
        return weights.flatten(1)


class Din(Ranker):
    """Profile, attended behaviours, candidate ad and context through one MLP with a softmax.

    `profile`, `ad` and `context` are ids `[B, L]` (`[B]` when L is 1), pooled by a sum;
    `behaviour` is `[B, T]` with id 0 for an empty position. Output `[B, top[-1]]`.
    """

    def __init__(
        self,
        rows: tuple[int, int, int, int],
        dim: int,
        length: int,
        lookups: int,
        attention: int,
        top: Sequence[int],
        per_position: bool,
    ) -> None:
        super().__init__()
        profile, behaviour, ad, context = rows
        self.inputs = (
            IdInput("profile", profile, lookups),
            IdInput("behaviour", behaviour, length, padded=True),
            IdInput("ad", ad, lookups),
            IdInput("context", context, lookups),
        )
        self.profile = Table(profile, dim, lookups=lookups)
        self.behaviours = Behaviours(behaviour, dim, length, per_position=per_position)
        self.ad = Table(ad, dim, lookups=lookups)
        self.context = Table(context, dim, lookups=lookups)
        self.attention = ActivationUnit(dim, attention, length)
        self.top = mlp((4 * dim, *top), last="softmax")

    def forward(self, profile: Tensor, behaviour: Tensor, ad: Tensor, context: Tensor) -> Tensor:
        candidate = self.ad(ad)
        history = self.behaviours(behaviour)
        filled = behaviour.ne(0).to(history.dtype)
        weights = self.attention(history, candidate) * filled
        interest = (weights.unsqueeze(2) * history).sum(dim=1)
        parts = [self.profile(profile), interest, candidate, self.context(context)]
        scores: Tensor = self.top(torch.cat(parts, dim=1))
        return scores


def din(
    *,
    length: int = 250,
    lookups: int = 3,
    dim: int = 32,
    attention: int = 36,
    top: Sequence[int] = (200, 80, 2),
    per_position_tables: bool = False,
    rows_scale: float = 1.0,
    seed: int = 0,
) -> Din:
    """DIN: profile 1,000,000, behaviours 100,000, ad and context 10,000,000 rows, 2.70 GB.

    Architecture: Zhou et al., arXiv 1706.06978: one behaviour table, an activation unit of 36
    units with PReLU and one weight per behaviour, top 128-200-80-2 with a softmax; output
    `[B, 2]`, no click and click. Two simplifications are ours: the unit takes the element-wise
    product of behaviour and candidate for the paper's outer product, and the top has ReLU. Sizes:
    DeepRecInfra (arXiv 2001.02772), `din.json`, with its 250 behaviours.

    The DeepRecSys code differs: a table per behaviour (`per_position_tables=True`: 253 tables,
    5.89 GB), three pooled lookups in each, and per behaviour its own layers 96-1-32 over
    behaviour, ad and their *sum*, whose outputs are added up in place of weighted behaviours; its
    last layer has a ReLU. Started with `din.json` alone it runs with one behaviour only.
    """
    profile, behaviour, ad, context = (
        scaled(n, rows_scale) for n in (1_000_000, 100_000, 10_000_000, 10_000_000)
    )
    model = Din(
        (profile, behaviour, ad, context),
        dim,
        length,
        lookups,
        attention,
        top,
        per_position_tables,
    )
    return finish(model, seed)
