"""Deep Interest Evolution Network (DIEN): a GRU finds interests, an AUGRU follows one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import IdInput, Ranker, finish, scaled
from .layers import Behaviours, Linear, Table, mlp


class GatedRecurrence(nn.Module):
    """A GRU whose update gate is multiplied by a given factor: AUGRU, unrolled over T steps.

    items `[B, T, d]` and factors `[B, T]` give T states `[B, hidden]`. A factor of 1 is a plain
    GRU step, an attention score is a step of AUGRU, and 0 leaves the state as it was, which is how
    empty positions are skipped without packed sequences. The projection of all items is one
    matrix product; only the one of the state is sequential.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.of_item = Linear(dim, 3 * hidden, gain=1.0)
        self.of_state = Linear(hidden, 3 * hidden, gain=1.0)

    def forward(self, items: Tensor, factors: Tensor) -> list[Tensor]:
        parts = [2 * self.hidden, self.hidden]
        of_gates, of_candidate = self.of_item(items).split(parts, dim=2)
        state = items.new_zeros(items.shape[0], self.hidden)
        states: list[Tensor] = []
        for gate, item, factor in zip(
            of_gates.unbind(1), of_candidate.unbind(1), factors.unsqueeze(2).unbind(1), strict=True
        ):
            state_gate, state_item = self.of_state(state).split(parts, dim=1)
            reset, update = torch.sigmoid(gate + state_gate).chunk(2, dim=1)
            candidate = torch.tanh(item + reset * state_item)
            state = state + factor * update * (candidate - state)
            states.append(state)
        return states


class InterestAttention(nn.Module):
    """Attention of a candidate `[B, d]` over interests `[B, T, hidden]`: weights `[B, T]`.

    A bilinear score and a softmax over the positions where `mask` `[B, T]` is true; other
    positions get 0, also where a row has none at all.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.key = Linear(dim, hidden, bias=False, gain=1.0)

    def forward(self, interests: Tensor, candidate: Tensor, mask: Tensor) -> Tensor:
        scores = (interests * self.key(candidate).unsqueeze(1)).sum(dim=2)
        # The lowest finite value, not -inf: a row of -inf alone would turn into NaN.
        scores = scores.masked_fill(mask.logical_not(), torch.finfo(scores.dtype).min)
        return torch.softmax(scores, dim=1) * mask.to(scores.dtype)


class Dien(Ranker):
    """Profile, the evolved interest, candidate ad and context through one MLP with a softmax.

    `profile`, `ad` and `context` are ids `[B]`; `behaviour` is `[B, T]` with id 0 for an
    empty position. Output `[B, top[-1]]`.
    """

    def __init__(
        self,
        rows: tuple[int, int, int, int],
        dim: int,
        length: int,
        hidden: int,
        top: Sequence[int],
        per_position: bool,
    ) -> None:
        super().__init__()
        profile, behaviour, ad, context = rows
        self.inputs = (
            IdInput("profile", profile),
            IdInput("behaviour", behaviour, length, padded=True),
            IdInput("ad", ad),
            IdInput("context", context),
        )
        self.profile = Table(profile, dim)
        self.behaviours = Behaviours(behaviour, dim, length, per_position=per_position)
        self.ad = Table(ad, dim)
        self.context = Table(context, dim)
        self.extractor = GatedRecurrence(dim, hidden)
        self.attention = InterestAttention(dim, hidden)
        self.evolution = GatedRecurrence(hidden, hidden)
        self.top = mlp((hidden + 3 * dim, *top), last="softmax")

    def forward(self, profile: Tensor, behaviour: Tensor, ad: Tensor, context: Tensor) -> Tensor:
        candidate = self.ad(ad)
        history = self.behaviours(behaviour)
        mask = behaviour.ne(0)
        interests = torch.stack(self.extractor(history, mask.to(history.dtype)), dim=1)
        interest = self.evolution(interests, self.attention(interests, candidate, mask))[-1]
        parts = [self.profile(profile), interest, candidate, self.context(context)]
        scores: Tensor = self.top(torch.cat(parts, dim=1))
        return scores


def dien(
    *,
    length: int = 40,
    hidden: int = 64,
    dim: int = 32,
    top: Sequence[int] = (200, 80, 2),
    per_position_tables: bool = False,
    rows_scale: float = 1.0,
    seed: int = 0,
) -> Dien:
    """DIEN: profile and behaviours 500,000, ad and context 5,000,000 rows, 1.41 GB.

    Architecture: Zhou et al., arXiv 1809.03672: one behaviour table, a GRU as interest extractor,
    attention of the candidate over its states, an AUGRU as interest evolution, top 160-200-80-2
    with a softmax; output `[B, 2]`, no click and click. The top has ReLU, and the
    auxiliary loss of the paper plays no part in inference. Sizes: DeepRecInfra
    (arXiv 2001.02772), `dien.json`: 40 behaviours, hidden width 64.

    The DeepRecSys code differs: a table per behaviour (`per_position_tables=True`: 43 tables,
    3.90 GB), and two plain tanh recurrences with a softmax layer between them in place of GRU,
    attention and AUGRU.
    """
    profile, behaviour, ad, context = (
        scaled(n, rows_scale) for n in (500_000, 500_000, 5_000_000, 5_000_000)
    )
    model = Dien((profile, behaviour, ad, context), dim, length, hidden, top, per_position_tables)
    return finish(model, seed)
