"""Calls that torch.export cannot trace, given as others that it can.

Where the number of rows is free, it reads that as a number, or asks of it what it cannot prove; and
what is read through `.data` is a constant to it. Models would be refused for what they may well do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import _prims
from torch.fx.experimental.symbolic_shapes import statically_known_true

from recreplay.capture import known_values, packed_steps, rows_left_out
from recreplay.capture.jagged_calls import CALLS, follow_places

_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_EXACT, _PRODUCTS = "donot_use_mm_for_euclid_dist", "use_mm_for_euclid_dist"
_LEAST = min
_MANY = 25  # rows, beyond which torch computes distances by products


def traceable_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func(*args, **kwargs)` gives, by other calls where it could not be traced."""
    name = getattr(func, "__name__", "")
    steps = packed_steps.any_are_packed()
    if steps:
        is_step, found = packed_steps.step(name, args)
        if is_step:
            rows_left_out.follow_rows(name, args, kwargs, found)
            return found
        args, kwargs = packed_steps.exchange((args, kwargs))
    found = _call(name, func, args, kwargs)
    if name not in CALLS:
        follow_places(name, (args, kwargs), found)
    known_values.follow_values(func, args, kwargs, found)
    if name != "__setitem__" or found is None:  # rows that were left out were given an answer
        rows_left_out.follow_rows(name, args, kwargs, found)
    if steps:
        packed_steps.follow_rows(found)
    return found


def _call(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor = args[0] if args else None
    if func == _DATA and isinstance(tensor, torch.Tensor):
        return tensor.detach()
    for calls in _OF_TENSORS if isinstance(tensor, torch.Tensor) else _OF_OTHERS:
        instead = calls.get(name)
        found = None if instead is None else instead(*args, **kwargs)
        if found is not None:
            return found
    return func(*args, **kwargs)


@contextmanager
def free_len(model: torch.nn.Module) -> Iterator[None]:
    """`len(x)` of a tensor is its rows, free where those are: Python's own makes a number of them,
    and of the batch the example's. In the packages that the model's classes are of."""
    spaces = _globals_of(model)
    for space in spaces:
        space["len"] = _rows
    try:
        yield
    finally:
        for space in spaces:
            space.pop("len", None)  # of modules by two names


@contextmanager
def provable_strides() -> Iterator[None]:
    """Views that join dimensions have a stride that can be compared: the least of theirs. torch
    takes that by Python's `min`, for which it has put a symbolic one, of the model, meanwhile; of
    `min(16, 16 * batch)` it proves nothing, and takes what it finds for the example's number."""
    vars(_prims)["min"] = _LEAST
    try:
        yield
    finally:
        vars(_prims).pop("min", None)


def _rows(of: Any, /) -> Any:
    count = getattr(type(of), "__len__", None)  # a tensor's, or of a class of tensors
    return of.__len__() if isinstance(count, FunctionType) else len(of)


def _globals_of(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Of all modules of those packages, without those that have a `len` of their own."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    packages = {kind.__module__.partition(".")[0] for kind in classes}
    packages -= {"torch", "recreplay", *sys.stdlib_module_names}
    found = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in packages]
    spaces = [vars(module) for module in found if isinstance(module, ModuleType)]
    return [space for space in spaces if "len" not in space]


def _take_along_dim(
    tensor: torch.Tensor, indices: torch.Tensor, dim: int | None = None, **others: Any
) -> torch.Tensor | None:
    if dim is None or others or indices.ndim != tensor.ndim:
        return None
    pairs = list(zip(tensor.shape, indices.shape, strict=True))
    common = [there if _is_one(own) else own for own, there in pairs]
    sizes, taken = list(common), list(common)
    sizes[dim], taken[dim] = pairs[dim]
    return tensor.expand(sizes).gather(dim, indices.expand(taken))


def _is_one(size: int | torch.SymInt) -> bool:
    return isinstance(size, int) and size == 1


def _split(
    tensor: torch.Tensor,
    split_size: Any = None,
    dim: int = 0,
    *,
    split_size_or_sections: Any = None,
) -> tuple[torch.Tensor, ...] | None:
    size = split_size_or_sections if split_size is None else split_size
    if not isinstance(size, torch.SymInt):
        return None
    return _parts(tensor, tensor.shape[dim] // size, size, dim)


def _chunk(tensor: torch.Tensor, chunks: Any, dim: int = 0) -> tuple[torch.Tensor, ...] | None:
    if not isinstance(tensor.shape[dim], torch.SymInt):
        return None
    return _parts(tensor, chunks, tensor.shape[dim] // chunks, dim)


def _parts(tensor: torch.Tensor, count: Any, size: Any, dim: int) -> tuple[Any, ...] | None:
    """So many equal parts of a dimension, where there are as many whatever the number of rows."""
    number = count if isinstance(count, int) else count.node.maybe_as_int()
    if number is None or not statically_known_true(number * size == tensor.shape[dim]):
        return None
    dim %= tensor.ndim
    parts: torch.Tensor = torch.unflatten(tensor, dim, (number, size))
    return parts.unbind(dim)


def _cdist(
    left: torch.Tensor, right: torch.Tensor, p: float = 2.0, compute_mode: str | None = None
) -> torch.Tensor | None:
    rows = [side.shape[-2] for side in (left, right)]
    open_choice = compute_mode in (None, "use_mm_for_euclid_dist_if_necessary")
    if p != 2 or not open_choice or all(isinstance(size, int) for size in rows):
        return None
    many = any(isinstance(size, int) and size > _MANY for size in rows)
    return torch.cdist(left, right, p, _PRODUCTS if many else _EXACT)


_INSTEAD: dict[str, Callable[..., Any]] = {
    "take_along_dim": _take_along_dim,
    "split": _split,
    "chunk": _chunk,
    "cdist": _cdist,
}
_OF_TENSORS = (_INSTEAD, known_values.CALLS, rows_left_out.CALLS, CALLS)  # the first argument's
_OF_OTHERS = (packed_steps.CALLS, CALLS)
