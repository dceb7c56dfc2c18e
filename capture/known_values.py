"""Values that are the same for every request, which a model may ask for while it is traced.

torch.export traces without values, and refuses what makes a size or a branch of one: the pairs of
fields that a mask selects, all rows of a table but that of padding, how often each is repeated.
Where these come of the model's own numbers and of nothing given, they are computed beside the
trace, and the call is given as one whose sizes are known. Of what a model holds, integers and flags
are known so, which a refresh may not change then: floats may be refreshed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from types import EllipsisType, NoneType
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from recreplay.capture.freeze import tensors_in

_known: MutableMapping[torch.Tensor, torch.Tensor] = WeakTensorKeyDictionary()
# The dictionary of a module that has a tensor, its name there and in the model, and its value.
_held: list[tuple[dict[str, Any], str, str, torch.Tensor]] = []
# What of the model is in values, by their memory, and what was asked for so far.
_sources: dict[int, set[str]] = {}
_asked: set[str] = set()
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_IN_PLACE = ("add", "and", "floordiv", "lshift", "mod", "mul", "or", "rshift", "sub", "xor")
_UNPAIRED = (slice, int, torch.SymInt, NoneType, EllipsisType)  # parts of an index beside places
_WRITES = {"__setitem__", *(f"__i{name}__" for name in _IN_PLACE)}


@contextmanager
def held_values(model: torch.nn.Module) -> Iterator[set[str]]:
    """Knows the integers and flags of a model, while torch has put others in their place. Fills the
    set with the names of those whose values were asked for."""
    for path, module in model.named_modules():
        for space in (module._parameters, module._buffers):
            _held.extend(
                (space, name, f"{path}.{name}" if path else name, held.detach())
                for name, held in space.items()
                if held is not None and not (held.is_floating_point() or held.is_complex())
            )
    asked: set[str] = set()
    try:
        yield asked
    finally:
        asked |= _asked
        for of_this_trace in (_held, _known, _sources, _asked):
            of_this_trace.clear()


def known(tensor: object) -> torch.Tensor | None:
    """The value of a tensor that is traced, if it is the same for every request."""
    if not isinstance(tensor, torch.Tensor) or torch.compiler.is_dynamo_compiling():
        return None
    if tensor not in _known and (held := _of_model(tensor)) is not None:
        name, value = held
        with _disable_current_modes():
            _known[tensor] = value.clone()  # the model may write into its own
        _sources[_memory(_known[tensor])] = {name}
    return _known.get(tensor)


def asked_for(tensor: object) -> torch.Tensor | None:
    """The same, where something is decided by it."""
    value = known(tensor)
    if value is not None:
        _asked.update(_sources.get(_memory(value), ()))
    return value


def _memory(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()


def rows_are_alike(tensor: torch.Tensor) -> bool:
    """Whether all rows of a tensor are known to be the same."""
    value = asked_for(tensor)
    if value is None:
        return tensor.stride(0) == 0
    with _disable_current_modes():
        return bool((value == value[:1]).all())


def is_count(value: torch.Tensor) -> bool:
    """Whether a known value counts from 0 on."""
    with _disable_current_modes():
        return torch.equal(value.flatten(), torch.arange(value.numel(), device=value.device))


def _of_model(tensor: object) -> tuple[str, torch.Tensor] | None:
    """Its name and its value."""
    found = ((path, value) for space, name, path, value in _held if space.get(name) is tensor)
    return next(found, None)


def follow_values(func: Callable[..., Any], args: Any, kwargs: Any, made: Any) -> None:
    """Know what a call makes of known values."""
    writes = writes_into(getattr(func, "__name__", "")) or "out" in kwargs
    if not (writes or isinstance(made, (torch.Tensor, tuple, list))):
        return  # most calls ask for a size or a type
    if torch.compiler.is_dynamo_compiling():
        return
    if any(map(_unknown, args)) or any(map(_unknown, pytree.tree_leaves((args, kwargs)))):
        if writes:
            _forget_written(args, kwargs)
        return
    results = tensors_in(made)
    if not results and not writes:
        return
    try:
        found = _computed(func, args, kwargs)
    except Exception:  # as the call itself, which was traced, may not
        found = None
    reals = tensors_in(found)
    if len(reals) == len(results):
        given = [_known[tensor] for tensor in tensors_in((args, kwargs))]
        _follow_sources(given, reals, writes)
        _known.update(zip(results, reals, strict=True))
    elif writes:
        _forget_written(args, kwargs)  # by chance, say


def _follow_sources(given: list[torch.Tensor], made: list[torch.Tensor], writes: bool) -> None:
    """Values are of what they are made of, and so is what is written into."""
    found = set().union(*(_sources.get(_memory(value), ()) for value in given))
    for value in (*made, *(given[:1] if writes else ())) if found else ():
        _sources.setdefault(_memory(value), set()).update(found)


def _unknown(argument: object) -> bool:
    tensor = isinstance(argument, torch.Tensor)
    return isinstance(argument, _SYMBOLS) or (tensor and known(argument) is None)


def writes_into(name: str) -> bool:
    """Whether a call of this name writes into its first argument."""
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _WRITES


def _forget_written(args: Any, kwargs: Any) -> None:
    for written in pytree.tree_leaves(kwargs.get("out", args[:1])):
        if (value := known(written)) is not None:
            _forget(value)


def _forget(value: torch.Tensor) -> None:
    """What lies in the same memory is not known any more."""
    gone = [t for t, v in _known.items() if _memory(v) == _memory(value)]
    for tensor in gone:
        del _known[tensor]


def _computed(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The same call on values, or None where it draws random numbers."""
    drawn = torch.default_generator.get_state()
    values = pytree.tree_map_only(torch.Tensor, lambda tensor: _known[tensor], (args, kwargs))
    with _disable_current_modes(), torch.no_grad():
        found = func(*values[0], **values[1])
    if torch.equal(drawn, torch.default_generator.get_state()):
        return found
    torch.default_generator.set_state(drawn)
    return None


def _constant(values: list[Any], like: torch.Tensor) -> torch.Tensor:
    """Known numbers as the trace has them."""
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _of_number(name: str) -> Callable[..., Any]:
    ask: Callable[[torch.Tensor], Any] = getattr(torch.Tensor, name)

    def answer(tensor: torch.Tensor) -> Any:
        value = asked_for(tensor)
        if value is None:
            return None
        with _disable_current_modes():
            return ask(value)

    return answer


def _places(mask: torch.Tensor, sizes: tuple[int, ...] | None = None) -> list[list[int]] | None:
    """Where a known mask, spread to these sizes, is not zero: in each of its dimensions."""
    value = asked_for(mask)
    if value is None or not value.ndim:
        return None
    with _disable_current_modes():
        spread = value if sizes is None else value.expand(sizes)
        return [places.tolist() for places in spread.nonzero(as_tuple=True)]


def _nonzero(tensor: torch.Tensor, *others: Any, as_tuple: bool = False, **named: Any) -> Any:
    places = None if others or named else _places(tensor)
    if places is None:
        return None
    found = [_constant(each, tensor) for each in places]
    return tuple(found) if as_tuple else torch.stack(found, 1)


def _masked_select(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
    """By a mask of the last dimensions, whatever the number of rows before them."""
    first = tensor.ndim - mask.ndim
    sizes = tuple(tensor.shape[first:]) if first >= 0 else ()
    free = any(isinstance(size, torch.SymInt) for size in sizes)
    places = None if free or first < 0 else _places(mask, sizes)
    if places is None:
        return None
    index: Any = [*[slice(None)] * first, *(_constant(each, tensor) for each in places)]
    return tensor[tuple(index)].flatten()


def _by_places(index: Any) -> tuple[Any, ...] | None:
    """An index with places instead of masks, if these are known; None where there is none."""
    parts = index if isinstance(index, tuple) else (index,)
    alone = sum(not isinstance(part, _UNPAIRED) for part in parts) == 1
    found: list[Any] = []
    for part in parts:
        if not isinstance(part, torch.Tensor) or part.dtype != torch.bool:
            found.append(part)
        elif (places := _places(part)) is None:
            return None
        elif alone and len(places) == 1 and _side_by_side(places[0]):
            found.append(slice(places[0][0], places[0][-1] + 1))  # copies nothing
        else:
            found += [_constant(each, part) for each in places]
    masks = [isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts]
    return tuple(found) if any(masks) else None


def _side_by_side(places: list[int]) -> bool:
    return bool(places) and places[-1] - places[0] + 1 == len(places)


def _get(tensor: torch.Tensor, index: Any) -> torch.Tensor | None:
    places = _by_places(index)
    if places is None:
        return None
    found = tensor[places]
    # As masks give: models may write into it. Into what they hold alone, they do not.
    return found.clone() if any(isinstance(s, torch.SymInt) for s in tensor.shape) else found


def _set(tensor: torch.Tensor, index: Any, value: Any) -> torch.Tensor | None:
    places = _by_places(index)
    if places is None:
        return None
    tensor[places] = value
    return tensor


def _repeat_interleave(
    tensor: torch.Tensor, repeats: Any = None, dim: int | None = None, **others: Any
) -> torch.Tensor | None:
    value = asked_for(repeats)
    if value is None or value.ndim != 1 or others:
        return None
    flat = tensor.flatten() if dim is None else tensor
    count = flat.shape[dim or 0]
    if isinstance(count, torch.SymInt):
        return None
    with _disable_current_modes():
        places = torch.arange(count).repeat_interleave(value.expand(count).cpu()).tolist()
    return flat.index_select(dim or 0, _constant(places, tensor))


CALLS: dict[str, Callable[..., Any]] = {
    **{
        name: _of_number(name)
        for name in ("item", "tolist", "__bool__", "__int__", "__index__", "__float__")
    },
    "nonzero": _nonzero,
    "argwhere": _nonzero,
    "where": partial(_nonzero, as_tuple=True),
    "masked_select": _masked_select,
    "repeat_interleave": _repeat_interleave,
    "__getitem__": _get,
    "__setitem__": _set,
}
