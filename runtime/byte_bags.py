"""`recreplay::byte_bags`: lookups in a table of int8 rows, pooled in float32.

A byte b of a row stands for `b * scale + offset` (`recreplay.runtime.lowered`), so that a bag is
the sum of its bytes, each times the scale of its row, and of the offsets. Packages call
`byte_bags.h` of `recreplay.capture.compilers`; what is below runs where no package is: in tracing
and in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from recreplay.runtime.own_operator import define_operator


@cache
def byte_bags_operator() -> Callable[..., Any]:
    """The operator, defined when it is first asked for.

    `byte_bags(codes, scales, ids, length, mean) -> float32 [bags, dim]`: `codes` uint8
    `[rows, dim]`, `scales` float32 `[rows, 2]` (scale, offset), `ids` int32 or int64 of any shape,
    every `length` of which, one after another, are a bag; their sum, or their mean.
    """
    schema = "Tensor codes, Tensor scales, Tensor ids, int length, bool mean"
    return define_operator("byte_bags", schema, _bags, _shape)


def _shape(codes: Tensor, _scales: Tensor, ids: Tensor, length: int, _mean: bool) -> Tensor:
    return codes.new_empty([ids.numel() // length, codes.shape[1]], dtype=torch.float32)


def _bags(codes: Tensor, scales: Tensor, ids: Tensor, length: int, mean: bool) -> Tensor:
    flat = ids.reshape(-1)
    pairs = scales[flat]
    rows = codes[flat].float() * pairs[:, :1] + pairs[:, 1:]
    bags = rows.view(-1, length, codes.shape[1])
    return bags.mean(1) if mean else bags.sum(1)
