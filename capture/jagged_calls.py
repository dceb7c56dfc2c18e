"""Calls of fbgemm, which torchrec and HSTU are written with, as a graph can have them.

They are on lists of a number of items of their own per row. Arguments have fbgemm's names.

Operators make a tensor of as many items as the lists have. Where these are an input, that is a
size of its own. Where they were padded rows before (`dense_to_jagged`, as HSTU takes its histories)
it is read off the data, which no graph can do; then all places stay, and those that hold no item
are left out when the lists are padded again, as what works on each item by itself reaches no other.
Anything else, such as the last item of each list by its offsets, is refused: it would find an item
of another place, and where all lists of the example are as long as its rows, that does not show.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils.weak import WeakTensorKeyDictionary

from recreplay.capture.division import offsets_of
from recreplay.capture.freeze import tensors_in
from recreplay.runtime.errors import UnsupportedModelError

aten = torch.ops.aten
# How many items the lists have that these offsets divide.
_counts: MutableMapping[torch.Tensor, Any] = WeakTensorKeyDictionary()
# How many places rows have of which these items are all.
_places: MutableMapping[torch.Tensor, Any] = WeakTensorKeyDictionary()
Lists = tuple[torch.Tensor, list[torch.Tensor]]


def follow_places(name: str, given: Any, made: Any) -> None:
    """Know what a call makes of all places of rows. Raises UnsupportedModelError where it may not
    work on each item by itself."""
    if torch.compiler.is_dynamo_compiling():
        return  # branches of torch.cond, which is refused; no table of tensors is traced there
    tensors = tensors_in(given) if _places else []
    items = next((tensor for tensor in tensors if tensor in _places), None)
    if items is None:
        return
    results = tensors_in(made)
    beside = [t for t in tensors if t not in _places and _is_along(t, items)]
    beside = [t for t in beside if t.stride(0) != 0]  # of zero: the same one for each
    if beside or not all(_is_along(result, items) for result in results):
        raise _refusal(f"{name!r} may work on more than each item by itself")
    for result in results:
        _places[result] = _places[items]


def _is_along(tensor: torch.Tensor, items: torch.Tensor) -> bool:
    return tensor.ndim > 0 and statically_known_true(tensor.shape[0] == items.shape[0])


def _refusal(problem: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "where fbgemm's dense_to_jagged makes lists of padded rows, a captured graph keeps all "
        f"their places, and {problem}; read the padded rows, or pad the items again "
        "(jagged_to_padded_dense) to as many places before"
    )


def _ends(t_in: torch.Tensor) -> torch.Tensor | None:
    return offsets_of(t_in) if t_in.ndim == 1 else None


def _padded(
    values: torch.Tensor, offsets: Any, max_lengths: Any, padding_value: float = 0.0
) -> torch.Tensor | None:
    """`[items, D]` to `[rows, longest, D]`."""
    if values.ndim != 2 or len(offsets) != 1 or not values.is_floating_point():
        return None
    (of,), (longest,) = offsets, max_lengths
    known = _places.get(values)
    if known is None and not _has_all_places(values.shape[0], longest):
        _counts[of] = values.shape[0]
        made: torch.Tensor = aten._jagged_to_padded_dense_forward(
            values, offsets, max_lengths, padding_value
        )
        return made
    if known != longest:
        raise _refusal(f"jagged_to_padded_dense to {longest} places is not to as many")
    held = torch.arange(longest, device=of.device) < of.diff().unsqueeze(1)
    places: torch.Tensor = torch.unflatten(values, 0, (-1, longest))
    return places.masked_fill(~held.unsqueeze(-1), padding_value)


def _jagged(dense: torch.Tensor, x_offsets: Any, total_L: Any = None) -> Lists | None:
    """`[rows, longest, D]` to `[items, D]`."""
    if dense.ndim != 3 or len(x_offsets) != 1:
        return None
    items = _counts.get(x_offsets[0]) if total_L is None else total_L
    if items is None or _has_all_places(items, dense.shape[1]):
        made = dense.flatten(0, 1)
        _places[made] = dense.shape[1]
        return made, x_offsets
    return aten._padded_dense_to_jagged_forward(dense, x_offsets, items), x_offsets


def _joined(join: Any, x_values: torch.Tensor, x_offsets: Any, y: torch.Tensor) -> Lists | None:
    found = _jagged(y, x_offsets, x_values.shape[0])
    if found is None:
        return None
    made = join(x_values, found[0])
    follow_places(join.__name__, (x_values, found[0]), made)
    return made, x_offsets


def _has_all_places(items: Any, longest: Any) -> bool:
    """Whether so many items are `longest` for each row. The rows of two inputs are two sizes to
    torch, until something needs them to be one; a number of items of lists is never divisible."""
    free = isinstance(items, torch.SymInt) and longest > 1
    return free and statically_known_true(items % longest == 0)


CALLS: dict[str, Callable[..., Any]] = {
    "asynchronous_complete_cumsum": _ends,
    "jagged_to_padded_dense": _padded,
    "dense_to_jagged": _jagged,
    "jagged_dense_elementwise_add_jagged_output": partial(_joined, torch.add),
    "jagged_dense_elementwise_mul": partial(_joined, torch.mul),
}
