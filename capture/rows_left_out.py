"""Rows that a model leaves out for a while, as DIEN leaves out those without a history.

    some = lengths > 0
    states = gru(items[some], lengths[some])
    answer = torch.zeros(rows, width)
    answer[some] = states

How many are left depends on the request. Here all stay, and the answer takes only those that the
model had kept: what is computed of the others reaches no other row, and is dropped there. A model
that gives away fewer rows than it was given is refused, as any is whose rows are not its own.

One place of each row, where a mask has the number of it, is taken by that number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils.weak import WeakTensorKeyDictionary

from recreplay.capture.freeze import tensors_in
from recreplay.capture.known_values import asked_for, is_count, known, writes_into
from recreplay.capture.packed_steps import exchange
from recreplay.capture.rows_asked import calling_line
from recreplay.runtime.errors import UnsupportedModelError

# What is made of some rows, and the line that left others out.
_some: MutableMapping[Tensor, str] = WeakTensorKeyDictionary()
# Rows that all count places from 0 on, and of masks of one place in each row its number.
_counting: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
_places: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()


@contextmanager
def all_rows_given(model: nn.Module) -> Iterator[None]:
    """Refuses a model that answers for some of its rows, while it is traced."""

    def check(_module: Any, _given: Any, answer: Any) -> Any:
        answer = exchange(answer)
        for result in tensors_in(answer):
            if result in _some:
                raise UnsupportedModelError(
                    "the model answers for some rows of a request, and not for others"
                    f"{_some[result]}; a captured graph has fixed shapes, so give an answer for "
                    "each (answer[kept] = ..., or torch.where)"
                )
        return answer

    hook = model.register_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()
        for of_this_trace in (_some, _counting, _places):
            of_this_trace.clear()


def of_some_rows(tensor: Tensor) -> bool:
    """Whether it was made of rows of which the model has left out others."""
    return tensor in _some


def follow_rows(name: str, args: Any, kwargs: Any, made: Any) -> None:
    """Know what a call makes of some rows, and what counts places."""
    if torch.compiler.is_dynamo_compiling():
        return
    if name in ("repeat", "expand", "eq", "__eq__") and isinstance(made, Tensor):
        _follow_places(name, args, made)
    if not _some:
        return
    lines = [_some[tensor] for tensor in tensors_in((args, kwargs)) if tensor in _some]
    for result in tensors_in((made, _written(name, args))) if lines else ():
        _some[result] = lines[0]


def _written(name: str, args: Any) -> list[Tensor]:
    """What a call writes into: a tensor, and the one that it is a view of."""
    if not (writes_into(name) and args and isinstance(args[0], Tensor)):
        return []
    return tensors_in((args[0], args[0]._base))


def _follow_places(name: str, args: Any, made: Tensor) -> None:
    if name in ("repeat", "expand"):
        if made.ndim == 2 and _counts(args[0]) and _is_free(made):
            _counting[made] = True
        return
    for counted, number in (args, args[::-1]) if len(args) == 2 else ():
        if not isinstance(number, Tensor) or not made.ndim == number.ndim == 2:
            continue
        one_each = statically_known_true(number.shape[1] == 1) and not number.is_floating_point()
        if one_each and _counts(counted):
            _places[made] = number


def _counts(row: object) -> bool:
    """Whether a tensor is rows of all places in order, or one."""
    if not isinstance(row, Tensor) or row in _counting:
        return isinstance(row, Tensor)
    value = known(row)
    counts = value is not None and value.ndim in (1, 2) and is_count(value)
    return counts and asked_for(row) is not None


def _is_free(tensor: Tensor) -> bool:
    return isinstance(tensor.shape[0], torch.SymInt)


def _is_of_rows(mask: object, tensor: Tensor) -> bool:
    """Whether it says of each row whether it is kept, which depends on the request."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not mask.ndim or not tensor.ndim:
        return False
    free = all(isinstance(t.shape[0], torch.SymInt) for t in (mask, tensor))
    return free and known(mask) is None


def _kept(made: Tensor) -> Tensor:
    _some[made] = calling_line()
    return made


def _get(tensor: Tensor, index: Any) -> Tensor | None:
    if not _is_of_rows(index, tensor):
        return None
    if index.ndim == 1:
        return _kept(tensor.clone())
    if index not in _places or tensor.ndim != 3:
        return None
    place = _places[index].long()
    if _places[index] in _some:  # there may be none in the others
        place = place.clamp(min=0)
    return tensor.gather(1, place.unsqueeze(2).expand(-1, 1, tensor.shape[2])).squeeze(1)


def _masked_select(tensor: Tensor, mask: Tensor) -> Tensor | None:
    """By a mask of rows, whose elements are given one after the other."""
    if not _is_of_rows(mask, tensor) or mask.ndim != tensor.ndim:
        return None
    if not all(statically_known_true(size == 1) for size in mask.shape[1:]):
        return None
    return _kept(tensor.clone().flatten())


def _set(tensor: Tensor, index: Any, value: Any) -> Tensor | None:
    if not _is_of_rows(index, tensor) or not isinstance(value, Tensor):
        return None
    # Of as many rows as there are: those that the model did not leave out, or it would fail.
    free = value.ndim == tensor.ndim and isinstance(value.shape[0], torch.SymInt)
    if index.ndim != 1 or not free:
        return None
    kept = index.view(-1, *[1] * (tensor.ndim - 1))
    return tensor.copy_(torch.where(kept, value.to(tensor.dtype), tensor))


CALLS: dict[str, Callable[..., Any]] = {
    "__getitem__": _get,
    "__setitem__": _set,
    "masked_select": _masked_select,
}
