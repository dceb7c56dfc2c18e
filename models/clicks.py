"""A log of clicks as Criteo's has them, from a seed: what models can be trained and ranked on.

26 categories with the numbers of values of `CRITEO_ROWS`, few of which are common, 13 dense values,
and a label. Whether an item was clicked depends on hidden factors of its categories, one by one and
in pairs, and on its dense values. Every size and every distribution is ours; no such data can be
shipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import scaled
from .recpipe import CRITEO_ROWS

_FACTORS = 6
_PAIRS = 40  # of categories whose factors meet
_DENSE, _BENT = 13, 16
_SKEW = 3.0  # an exponent of uniform numbers: a tenth of the values is nearly half of the log
_SPREAD = 1.6  # of the logarithm of the odds
_ODDS = -3.0  # their mean: an eighth to a quarter of the items is clicked, as the truth has it


def clicks(
    rows: int, *, seed: int = 0, truth: int = 0, rows_scale: float = 1.0
) -> dict[str, Tensor]:
    """`dense` float32 `[rows, 13]`, `ids_0` to `ids_25` int64 `[rows]`, and `click` float32
    `[rows]`.

    `truth` is the seed of what is hidden, `seed` that of the rows: logs of one truth can be trained
    on and tested with. The inputs are those of `rm_small` and its sisters of the same `rows_scale`.
    """
    tables = [scaled(n, rows_scale) for n in CRITEO_ROWS]
    draw = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, _DENSE, generator=draw)
    ids = [(torch.rand(rows, generator=draw) ** _SKEW * n).long() for n in tables]
    odds = _log_odds(tables, ids, dense, torch.Generator().manual_seed(truth))
    clicked = torch.rand(rows, generator=draw) < torch.sigmoid(odds)
    columns = {f"ids_{i}": column for i, column in enumerate(ids)}
    return {"dense": dense, **columns, "click": clicked.float()}


def _log_odds(
    tables: Sequence[int], ids: Sequence[Tensor], dense: Tensor, hidden: torch.Generator
) -> Tensor:
    factors = [
        torch.randn(n, _FACTORS, generator=hidden)[column]
        for n, column in zip(tables, ids, strict=True)
    ]
    alone = sum(factor @ torch.randn(_FACTORS, generator=hidden) for factor in factors)
    pairs = torch.randint(0, len(tables), (_PAIRS, 2), generator=hidden).tolist()
    both = sum((factors[a] * factors[b]).sum(1) for a, b in pairs)
    bent = torch.tanh(dense @ torch.randn(_DENSE, _BENT, generator=hidden))
    of_dense = bent @ torch.randn(_BENT, generator=hidden)
    # Each of about the same spread.
    parts = (
        alone / (len(tables) * _FACTORS) ** 0.5,
        both / (_PAIRS * _FACTORS) ** 0.5,
        of_dense / _BENT**0.5,
    )
    odds: Tensor = _SPREAD * torch.stack(parts).sum(0) / len(parts) ** 0.5 + _ODDS
    return odds
