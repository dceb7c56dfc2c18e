"""Operators that say, move or change shapes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from recreplay.capture.onnx_import.call import Call, Constant, Operator
from recreplay.capture.onnx_import.dims import Dims, dims
from recreplay.capture.onnx_import.graph import ArrayValue, torch_dtype

aten = torch.ops.aten

# Ends from the first on are what exporters write for "to the end", and the second is how torch says
# it. The first would be a bound of a symbolic batch, which export refuses.
_FAR, _TO_THE_END = 10**9, 2**63 - 1


def cut(x: torch.Tensor, axis: int, start: Any, end: Any, step: int = 1) -> torch.Tensor:
    """`x[start:end:step]` along one axis, as the operator that capture knows as columns."""
    found: torch.Tensor = aten.slice.Tensor(x, axis % x.ndim, start, end, step)
    return found


def axes_of(call: Call, at: int = 1) -> list[int] | None:
    """Axes, which are an input or, before opset 13 or 18, an attribute."""
    if call.has(at):
        return [int(a) for a in call.ints(at, "its axes")]
    found = call.attribute("axes")
    return None if found is None else [int(a) for a in found]


def _constant(call: Call) -> Constant:
    for name, dtype in (
        ("value_float", torch.float32),
        ("value_floats", torch.float32),
        ("value_int", torch.int64),
        ("value_ints", torch.int64),
    ):
        if name in call.step.attributes:
            return Constant.holding(np.array(call.step.attributes[name]), dtype)
    value = call.attribute("value")
    if not isinstance(value, ArrayValue):
        raise call.refuse("its value is a string or sparse; expected a dense numeric tensor")
    return Constant.holding(value.array, value.dtype)


def _shape(call: Call) -> Dims:
    sizes = list(call.tensor(0).shape)
    return dims(sizes[slice(call.attribute("start", 0), call.attribute("end"))])


def _size(call: Call) -> Dims:
    counted = dims([prod(call.tensor(0).shape)])
    return Dims(counted.array.reshape(()), counted.dtype)


def _reshape(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    shape = call.ints(1, "its shape")
    if not call.attribute("allowzero", 0):
        shape = [x.shape[i] if type(d) is int and d == 0 else d for i, d in enumerate(shape)]
    return x.reshape(shape)


def _flatten(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    axis = call.attribute("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def _squeeze(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    axes = axes_of(call)
    if axes is None:
        axes = [i for i, d in enumerate(x.shape) if type(d) is int and d == 1]
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.squeeze(axis)
    return x


def _unsqueeze(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    axes = axes_of(call)
    if axes is None:
        raise call.refuse("it names no axes")
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _transpose(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    return x.permute(call.attribute("perm", list(reversed(range(x.ndim)))))


def _expand(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    wanted = call.ints(1, "its shape")
    rank = max(x.ndim, len(wanted))
    sizes = [1] * (rank - x.ndim) + list(x.shape)
    wanted = [1] * (rank - len(wanted)) + wanted
    # A size of 1 on either side gives way; a symbol is never one.
    shape = [w if type(s) is int and s == 1 else s for s, w in zip(sizes, wanted, strict=True)]
    number = call.number(0)
    if number is not None:
        return torch.full(shape, number, dtype=x.dtype)
    return x.expand(shape)


def _tile(call: Call) -> torch.Tensor:
    return call.tensor(0).repeat(call.ints(1, "its repeats"))


def _concat(call: Call) -> torch.Tensor:
    tensors = call.tensors()
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, call.required("axis"))


def _split(call: Call) -> list[torch.Tensor]:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    if call.has(1):
        sizes = call.ints(1, "its sizes")
    elif call.attribute("split") is not None:
        sizes = call.attribute("split")
    else:
        parts = call.attribute("num_outputs", len(call.step.outputs))
        each = -(-x.shape[axis] // parts)
        sizes = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    pieces, start = [], 0
    for size in sizes:
        pieces.append(cut(x, axis, start, start + size))
        start = start + size
    return pieces


def _slice(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    starts, ends = call.ints(1, "where it starts"), call.ints(2, "where it ends")
    axes = call.ints(3, "its axes") if call.has(3) else list(range(len(starts)))
    steps = call.ints(4, "its steps") if call.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            if type(end) is int and end >= _FAR and type(x.shape[axis]) is not int:
                end = _TO_THE_END
            x = cut(x, axis, start, end, step)
            continue
        size = x.shape[axis]
        if not all(type(v) is int for v in (size, start, end)):
            raise call.refuse("it runs backwards over the batch")
        first = min(start + size if start < 0 else start, size - 1)
        last = max(end + size if end < 0 else end, -1)
        x = cut(x.flip(axis), axis, size - 1 - first, size - 1 - last, -step)
    return x


def _pad(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    pads = call.ints(1, "its pads")
    axes = [a % x.ndim for a in axes_of(call, 3) or range(x.ndim)]
    before, after = pads[: len(axes)], pads[len(axes) :]
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        value = call.number(2) if call.has(2) else 0
        around = [0] * (2 * x.ndim)
        for axis, b, a in zip(axes, before, after, strict=True):
            around[2 * (x.ndim - 1 - axis)] = b
            around[2 * (x.ndim - 1 - axis) + 1] = a
        if value is not None:
            return F.pad(x, around, value=value)
        inside = F.pad(torch.ones_like(x, dtype=torch.bool), around)
        return torch.where(inside, F.pad(x, around), call.tensor(2))
    for axis, b, a in zip(axes, before, after, strict=True):
        if b or a:
            x = x.index_select(axis, torch.tensor(_around(mode, x.shape[axis], b, a, call)))
    return x


def _around(mode: str, size: int, before: int, after: int, call: Call) -> list[int]:
    """Which elements a padded axis takes."""
    places = range(-before, size + after)
    if mode == "edge":
        return [min(max(p, 0), size - 1) for p in places]
    if mode == "wrap":
        return [p % size for p in places]
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        return [min(p % period, period - p % period) for p in places]
    raise call.refuse(f"unknown mode {mode!r}")


def _constant_of_shape(call: Call) -> torch.Tensor:
    value = call.attribute("value")
    shape = call.ints(0, "its shape")
    if value is None:
        return torch.zeros(shape)
    return torch.full(shape, value.array.item(), dtype=value.dtype)


def _range(call: Call) -> torch.Tensor:
    first, limit, step = (call.ints(i, "its limits")[0] for i in range(3))
    known = call.dims(0)
    assert known is not None
    return torch.arange(first, limit, step, dtype=known.dtype)


def _trilu(call: Call) -> torch.Tensor:
    diagonal = int(call.ints(1, "its diagonal")[0]) if call.has(1) else 0
    return (torch.triu if call.attribute("upper", 1) else torch.tril)(call.tensor(0), diagonal)


def _eye_like(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    code = call.attribute("dtype")
    dtype = x.dtype if code is None else torch_dtype(code, str(call.step))
    rows, columns = torch.arange(x.shape[0]), torch.arange(x.shape[1])
    on_diagonal: torch.Tensor = columns - rows.unsqueeze(1) == call.attribute("k", 0)
    return on_diagonal.to(dtype)


def _one_hot(call: Call) -> torch.Tensor:
    ids, values = call.tensor(0), call.tensor(2)
    depth = int(call.ints(1, "its depth")[0])
    axis = call.attribute("axis", -1) % (ids.ndim + 1)
    places = torch.arange(depth, dtype=torch.int64)
    places = places.reshape([-1 if i == axis else 1 for i in range(ids.ndim + 1)])
    # An id below zero counts from the end; one outside of the depth is off everywhere.
    ids = ids.to(torch.int64).unsqueeze(axis)
    hit = (ids == places) | (ids + depth == places)
    return torch.where(hit, values[1], values[0])


SHAPES: dict[str, Operator] = {
    "Constant": _constant,
    "Shape": _shape,
    "Size": _size,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Trilu": _trilu,
    "EyeLike": _eye_like,
    "OneHot": _one_hot,
}
