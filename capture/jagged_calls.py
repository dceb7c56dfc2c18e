"""Calls of fbgemm, which torchrec and HSTU are written with, as a graph can have them.

They are on lists of a number of items of their own per row. Arguments have fbgemm's names.

Operators make a tensor of as many items as the lists have. Where these are an input, that is a
size of its own. Where they were padded rows before (`dense_to_jagged`, as HSTU takes its histories)
it is read off the data, which no graph can do; then all places stay, and those that hold no item
are left out when the lists are padded again, as what works on each item by itself reaches no other.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils.weak import WeakTensorKeyDictionary

from recreplay.capture.division import offsets_of

aten = torch.ops.aten
# How many items the lists have that these offsets divide.
_counts: MutableMapping[torch.Tensor, Any] = WeakTensorKeyDictionary()
Lists = tuple[torch.Tensor, list[torch.Tensor]]


def _ends(t_in: torch.Tensor) -> torch.Tensor | None:
    return offsets_of(t_in) if t_in.ndim == 1 else None


def _padded(
    values: torch.Tensor, offsets: Any, max_lengths: Any, padding_value: float = 0.0
) -> torch.Tensor | None:
    """`[items, D]` to `[rows, longest, D]`."""
    if values.ndim != 2 or len(offsets) != 1 or not values.is_floating_point():
        return None
    (of,), (longest,) = offsets, max_lengths
    if _has_all_places(values.shape[0], longest):
        held = torch.arange(longest, device=of.device) < of.diff().unsqueeze(1)
        places: torch.Tensor = torch.unflatten(values, 0, (-1, longest))
        return places.masked_fill(~held.unsqueeze(-1), padding_value)
    _counts[of] = values.shape[0]
    made: torch.Tensor = aten._jagged_to_padded_dense_forward(
        values, offsets, max_lengths, padding_value
    )
    return made


def _jagged(dense: torch.Tensor, x_offsets: Any, total_L: Any = None) -> Lists | None:
    """`[rows, longest, D]` to `[items, D]`."""
    if dense.ndim != 3 or len(x_offsets) != 1:
        return None
    items = _counts.get(x_offsets[0]) if total_L is None else total_L
    if items is None or _has_all_places(items, dense.shape[1]):
        return dense.flatten(0, 1), x_offsets
    return aten._padded_dense_to_jagged_forward(dense, x_offsets, items), x_offsets


def _added(x_values: torch.Tensor, x_offsets: Any, y: torch.Tensor) -> Lists | None:
    found = _jagged(y, x_offsets, x_values.shape[0])
    return found and (x_values + found[0], x_offsets)


def _multiplied(x_values: torch.Tensor, x_offsets: Any, y: torch.Tensor) -> Lists | None:
    found = _jagged(y, x_offsets, x_values.shape[0])
    return found and (x_values * found[0], x_offsets)


def _has_all_places(items: Any, longest: Any) -> bool:
    """Whether so many items are `longest` for each row. The rows of two inputs are two sizes to
    torch, until something needs them to be one; a number of items of lists is never divisible."""
    free = isinstance(items, torch.SymInt) and longest > 1
    return free and statically_known_true(items % longest == 0)


CALLS: dict[str, Callable[..., Any]] = {
    "asynchronous_complete_cumsum": _ends,
    "jagged_to_padded_dense": _padded,
    "dense_to_jagged": _jagged,
    "jagged_dense_elementwise_add_jagged_output": _added,
    "jagged_dense_elementwise_mul": _multiplied,
}
