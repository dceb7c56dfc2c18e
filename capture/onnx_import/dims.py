"""Sizes as numbers: the arithmetic that ONNX models do on shapes, done on Python integers.

What `Shape` gives, and all that is computed from it alone, never becomes a tensor. The batch stays
the symbol that torch.export made of it, so that `Shape -> Gather -> Concat -> Reshape` ends in a
reshape with a symbolic size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np
import torch

from recreplay.capture.onnx_import.graph import Step, torch_dtype

LARGEST_RANGE = 4096  # elements
Array = np.ndarray[Any, np.dtype[np.object_]]


@dataclass(frozen=True)
class Dims:
    """A small tensor whose elements are Python numbers or `torch.SymInt`s."""

    array: Array
    dtype: torch.dtype

    def flat(self) -> list[Any]:
        return list(self.array.reshape(-1))

    def tensor(self) -> torch.Tensor:
        """The same as a tensor, for operators that compute with it."""
        if not any(isinstance(v, torch.SymInt) for v in self.flat()):
            return torch.tensor(self.array.tolist(), dtype=self.dtype)
        elements = [
            torch.scalar_tensor(cast("int", v), dtype=self.dtype)
            if isinstance(v, torch.SymInt)
            else torch.tensor(v, dtype=self.dtype)
            for v in self.flat()
        ]
        return torch.stack(elements).reshape(self.array.shape)


def dims(values: Sequence[Any], dtype: torch.dtype = torch.int64) -> Dims:
    """A vector."""
    array = np.empty(len(values), dtype=object)
    for at, value in enumerate(values):
        array[at] = value
    return Dims(array, dtype)


def from_array(values: np.ndarray[Any, Any], dtype: torch.dtype) -> Dims:
    """A constant as numbers of Python."""
    return Dims(values.astype(object), dtype)


def compute(step: Step, inputs: Sequence[Dims | None]) -> list[Dims] | None:
    """The outputs of a step on sizes, or None if it is none of the operators that act on them."""
    function = _FUNCTIONS.get(step.op)
    if function is None or not inputs or inputs[0] is None:
        return None
    if step.op not in _READ_FLOATS and any(i and i.dtype.is_floating_point for i in inputs):
        return None
    found = function(step, [None if i is None else i.array for i in inputs])
    if found is None:
        return None
    dtype = inputs[1].dtype if step.op == "Where" and inputs[1] is not None else inputs[0].dtype
    if step.op == "ConstantOfShape":
        dtype = step.attributes["value"].dtype
    if step.op in ("Shape", "Size"):
        dtype = torch.int64
    if step.op in _OF_FLAGS:
        dtype = torch.bool
    if step.op in ("Cast", "CastLike"):
        dtype = _cast_dtype(step, inputs)
        if not _have_place(inputs[0], dtype):
            return None
        convert = _CONVERSIONS.get(dtype, int)
        found = _each(lambda v: v if isinstance(v, torch.SymInt) else convert(v), found)
    arrays = found if isinstance(found, list) else [found]
    return [Dims(_as_objects(a), dtype) for a in arrays]


_Inputs = list[Any]
_COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_OF_FLAGS = {*_COMPARISONS, "Not", "And", "Or"}
# Of floats, numbers are what a comparison says of them: exporters count turns of a loop in them.
_READ_FLOATS = {*_COMPARISONS, "Cast"}


def _cast_dtype(step: Step, inputs: Sequence[Dims | None]) -> torch.dtype:
    if step.op == "CastLike":
        assert inputs[1] is not None
        return inputs[1].dtype
    return torch_dtype(step.attributes["to"], str(step))


_CONVERSIONS: dict[torch.dtype, Callable[[Any], Any]] = {
    torch.bool: bool,
    torch.float16: lambda value: float(np.float16(value)),
    torch.float32: lambda value: float(np.float32(value)),
    torch.float64: float,
}


def _have_place(numbers: Dims, dtype: torch.dtype) -> bool:
    """Whether these can be numbers of `dtype`; a size that is a symbol is a whole one or a flag."""
    known = [v for v in numbers.flat() if not isinstance(v, torch.SymInt)]
    if dtype.is_floating_point:
        return dtype in _CONVERSIONS and len(known) == numbers.array.size
    if dtype == torch.bool:
        return True
    limits = torch.iinfo(dtype)
    return all(limits.min - 1 < v < limits.max + 1 for v in known)


def _as_objects(value: Any) -> Array:
    array = np.empty(np.shape(value), dtype=object)
    array[...] = value
    return array


def _each(function: Callable[..., Any], *arrays: Any) -> Any:
    """Element by element; numpy would ask symbols for their truth where it compares objects."""
    return np.frompyfunc(function, len(arrays), 1)(*arrays)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Step, _Inputs], Any]:
    return lambda step, x: _each(function, x[0], x[1])


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)  # ONNX rounds towards zero
        return quotient if (a < 0) == (b < 0) else -quotient
    return a // b  # sizes, which are not negative


def _larger(a: Any, b: Any) -> Any:
    return torch.sym_max(a, b)  # type: ignore[no-untyped-call]


def _smaller(a: Any, b: Any) -> Any:
    return torch.sym_min(a, b)  # type: ignore[no-untyped-call]


def _choose(condition: Any, yes: Any, no: Any) -> Any:
    return yes if bool(condition) else no


def _axes(step: Step, x: _Inputs) -> list[int] | None:
    if len(x) > 1 and x[1] is not None:
        return [int(a) for a in x[1].reshape(-1)]
    found = step.attributes.get("axes")
    return None if found is None else [int(a) for a in found]


def _gather(step: Step, x: _Inputs) -> Any:
    return np.take(x[0], x[1].astype(np.int64), axis=step.attributes.get("axis", 0))


def _slice(step: Step, x: _Inputs) -> Any:
    starts, ends = ([int(v) for v in a.reshape(-1)] for a in x[1:3])
    axes = list(range(len(starts))) if len(x) < 4 or x[3] is None else list(x[3].reshape(-1))
    steps = [1] * len(starts) if len(x) < 5 or x[4] is None else list(x[4].reshape(-1))
    where = [slice(None)] * x[0].ndim
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        backwards = stride < 0 and end < -x[0].shape[axis]
        where[int(axis)] = slice(start, None if backwards else end, int(stride))
    return x[0][tuple(where)]


def _unsqueeze(step: Step, x: _Inputs) -> Any:
    axes = _axes(step, x) or []
    return np.expand_dims(x[0], tuple(axes))


def _squeeze(step: Step, x: _Inputs) -> Any:
    axes = _axes(step, x)
    return np.squeeze(x[0], None if axes is None else tuple(axes))


def _reshape(step: Step, x: _Inputs) -> Any:
    zero = step.attributes.get("allowzero", 0)
    shape = _numbers(x[1])
    if shape is None:
        return None
    kept = [x[0].shape[i] if v == 0 and not zero else v for i, v in enumerate(shape)]
    return x[0].reshape(kept)


def _expand(step: Step, x: _Inputs) -> Any:
    sizes = _numbers(x[1])
    if sizes is None:
        return None
    shape = np.broadcast_shapes(x[0].shape, tuple(sizes))
    return None if prod(shape) > LARGEST_RANGE else np.broadcast_to(x[0], shape).copy()


def _numbers(sizes: Any) -> list[int] | None:
    """None where one is the batch, which a number of it would fix."""
    found = list(sizes.reshape(-1))
    return None if any(isinstance(v, torch.SymInt) for v in found) else [int(v) for v in found]


def _reduce(function: Callable[[Any, Any], Any], first: Any) -> Callable[[Step, _Inputs], Any]:
    def run(step: Step, x: _Inputs) -> Any:
        if x[0].ndim != 1 or _axes(step, x) not in (None, [], [0], [-1]):
            return None
        total = first
        for value in x[0]:
            total = value if total is None else function(total, value)
        keep = step.attributes.get("keepdims", 1)
        return _as_objects([total]) if keep else _as_objects(total)

    return run


def _split(step: Step, x: _Inputs) -> Any:
    axis = step.attributes.get("axis", 0)
    sizes = x[1] if len(x) > 1 else step.attributes.get("split")
    if sizes is None:
        return None
    ends = np.cumsum([int(v) for v in np.reshape(sizes, -1)])
    return np.split(x[0], ends[:-1], axis)


def _range(step: Step, x: _Inputs) -> Any:
    limits = [v.item() for v in x]
    if any(type(v) is not int for v in limits) or not limits[2]:
        return None
    found = range(*limits)
    return np.array(found, dtype=object) if len(found) <= LARGEST_RANGE else None


def _constant_of_shape(step: Step, x: _Inputs) -> Any:
    value = step.attributes.get("value")
    sizes = list(x[0].reshape(-1))
    if value is None or value.dtype.is_floating_point or any(type(s) is not int for s in sizes):
        return None
    if prod(sizes) > LARGEST_RANGE:
        return None
    found = np.empty(sizes, dtype=object)
    found[...] = value.array.item()
    return found


def _concat(step: Step, x: _Inputs) -> Any:
    return np.concatenate(x, axis=step.attributes["axis"])


def _cast(step: Step, x: _Inputs) -> Any:
    return x[0]


_FUNCTIONS: dict[str, Callable[[Step, _Inputs], Any]] = {
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _binary(_divide),
    "Mod": _binary(operator.mod),
    "Max": _binary(_larger),
    "Min": _binary(_smaller),
    "Neg": lambda step, x: _each(operator.neg, x[0]),
    "Equal": _binary(operator.eq),
    "Greater": _binary(operator.gt),
    "GreaterOrEqual": _binary(operator.ge),
    "Less": _binary(operator.lt),
    "LessOrEqual": _binary(operator.le),
    "And": _binary(lambda a, b: bool(a) and bool(b)),
    "Or": _binary(lambda a, b: bool(a) or bool(b)),
    "Not": lambda step, x: _each(lambda a: not bool(a), x[0]),
    "Where": lambda step, x: _each(_choose, *x),
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Size": lambda step, x: np.array(x[0].size, dtype=object),
    "Shape": lambda step, x: np.array(x[0].shape, dtype=object),
    "Split": _split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": lambda step, x: x[0].reshape(1, -1) if x[0].ndim == 1 else None,
    "Expand": _expand,
    "Transpose": lambda step, x: np.transpose(x[0], step.attributes.get("perm")),
    "Identity": _cast,
    "Cast": _cast,
    "CastLike": _cast,
    "ReduceProd": _reduce(operator.mul, 1),
    "ReduceSum": _reduce(operator.add, 0),
    "ReduceMax": _reduce(_larger, None),
    "ReduceMin": _reduce(_smaller, None),
}
