"""`recreplay::top_k`: the columns of the best values of each row, best first.

torch's `topk` for the CPU partitions pairs of value and place, of all columns. Packages call
`top_k.h` of `recreplay.capture.compilers`, which looks closer only at values that are better than
the worst that is kept; what is below runs where no package is: in tracing and in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from recreplay.runtime.own_operator import define_operator


@cache
def top_k_operator() -> Callable[..., Any]:
    """The operator, defined when it is first asked for.

    `top_k(x, k, largest) -> int64 [..., k]`: `x` float32 `[..., columns]` with at least `k`
    columns. NaN is larger than any number, as for torch; of equal values the first are taken.
    """
    return define_operator("top_k", "Tensor x, int k, bool largest", _best, _shape)


def _shape(x: Tensor, k: int, _largest: bool) -> Tensor:
    return x.new_empty([*x.shape[:-1], k], dtype=torch.int64)


def _best(x: Tensor, k: int, largest: bool) -> Tensor:
    order = torch.sort(x, dim=-1, descending=largest, stable=True).indices
    return order[..., :k].contiguous()
