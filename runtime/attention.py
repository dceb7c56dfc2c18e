"""`recreplay::attention`: scaled dot product attention over items of some tens to some hundreds.

torch's kernel for the CPU goes by blocks of long sequences, and calls a matrix library for each
head: for 30 items of 16 values that is half of a transformer's time. Packages call `attention.h` of
`recreplay.capture.compilers`, in which the weights of a head stay in a near cache; what is below
runs where no package is: in tracing and in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recreplay.runtime.own_operator import define_operator


@cache
def attention_operator() -> Callable[..., Any]:
    """The operator, defined when it is first asked for.

    `attention(query, key, value, mask, causal, scale, queries_first, replaces, by_parts)` gives
    float32 `[B, M, H, width]`, or `[M, B, H, width]` with `queries_first`: `query` float32
    `[B, M, H, dim]`, `key` `[B, N, G, dim]` and `value` `[B, N, G, width]`, where each of G groups
    serves as many heads. `mask` float32 `[B, H, M, N]` or None is added to the scores, or with
    `replaces` takes their place where it is a number. With `causal`, a query sees no key behind its
    own place. A query that sees none gets zeros, as of torch's attention, or no numbers where the
    model has a softmax (`by_parts`).
    """
    schema = "Tensor query, Tensor key, Tensor value, Tensor? mask, bool causal, float scale"
    schema += ", bool queries_first, bool replaces, bool by_parts"
    return define_operator("attention", schema, _attend, _shape)


def _shape(
    query: Tensor,
    _key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    _causal: bool,
    _scale: float,
    queries_first: bool,
    *_of_scores: bool,
) -> Tensor:
    batch, queries, heads, _ = query.shape
    first = [queries, batch] if queries_first else [batch, queries]
    return query.new_empty([*first, heads, value.shape[3]])


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    queries_first: bool,
    replaces: bool,
    by_parts: bool,
) -> Tensor:
    of, keys, values = (t.transpose(1, 2) for t in (query, key, value))
    if by_parts:
        scores = scale * (of @ keys.transpose(2, 3))
        if mask is not None:
            scores = torch.where(mask.isnan(), scores, mask) if replaces else scores + mask
        found = scores.softmax(-1) @ values
    else:
        found = F.scaled_dot_product_attention(
            of, keys, values, mask, is_causal=causal, scale=scale, enable_gqa=True
        )
    return found.permute((2, 0, 1, 3) if queries_first else (0, 2, 1, 3)).contiguous()
