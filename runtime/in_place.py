"""Operators that write their result where the caller wants it, in place of a tensor of their own.

An eager segment would else copy each result into its buffer: on CUDA a node more for every lookup
and layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

aten = torch.ops.aten


@cache
def writing_form(function: Callable[..., Any], device: str) -> Callable[..., Any] | None:
    """`function` with one more argument `out`, which it writes on this type of device, or None.

    Only where ATen has a kernel for it. Other forms with `out` compute a tensor and copy it.
    """
    if function in _BY_ANOTHER:
        return _BY_ANOTHER[function]
    if not isinstance(function, torch._ops.OpOverload):
        return None
    wanted = [(a.name, str(a.type)) for a in function._schema.arguments]
    for name in function.overloadpacket.overloads():
        form = getattr(function.overloadpacket, name)
        given = form._schema.arguments
        if [(a.name, str(a.type)) for a in given[:-1]] != wanted or given[-1].name != "out":
            continue
        key = "CUDA" if device == "cuda" else "CPU"
        if torch._C._dispatch_has_kernel_for_dispatch_key(form.name(), key):
            return form  # type: ignore[no-any-return]
    return None


def _embedding(weight: torch.Tensor, ids: torch.Tensor, *_: Any, out: torch.Tensor) -> torch.Tensor:
    torch.index_select(weight, 0, ids.reshape(-1), out=out.view(-1, weight.shape[1]))
    return out


def _relu(x: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    return torch.clamp_min(x, 0, out=out)


# What ATen itself calls for these.
_BY_ANOTHER: dict[Any, Callable[..., torch.Tensor]] = {
    aten.embedding.default: _embedding,
    aten.relu.default: _relu,
}
