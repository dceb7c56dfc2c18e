"""Operators that read or write elements by index, and what finds indices.

Indices of ONNX may be negative and then count from the end; those of torch's lookups may not.
Ids that a table is looked up by, and that are an input's own elements, are what the runtime checks
in each request: negative ones are refused there, as for models of torch. Indices that are proved
not to be negative are taken as they are, and all others are wrapped here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recreplay.capture.onnx_import.call import Call, Operator
from recreplay.capture.onnx_import.operators.shapes import cut

aten = torch.ops.aten


def wrapped(call: Call, at: int, size: int) -> torch.Tensor:
    """An index input, with what counts from the end made to count from the start."""
    known = call.constant(at)
    index = call.tensor(at)
    if call.is_natural(at) or (known is not None and bool((known >= 0).all())):
        return index
    return torch.where(index < 0, index + size, index)


def _gather(call: Call) -> torch.Tensor:
    data = call.tensor(0)
    axis = call.attribute("axis", 0) % data.ndim
    known = call.dims(1)
    if known is not None and known.array.ndim <= 1:
        return _pick(data, axis, known.flat(), known.array.ndim, call)
    table = axis == 0 and call.constant(0) is not None
    ids = call.tensor(1) if table and call.is_given(1) else wrapped(call, 1, data.shape[axis])
    if axis == 0 and data.is_floating_point() and data.ndim == 2:
        return F.embedding(ids, data)
    rows = data.index_select(axis, ids.reshape(-1))
    return rows.reshape([*data.shape[:axis], *ids.shape, *data.shape[axis + 1 :]])


def _pick(data: torch.Tensor, axis: int, places: list[int], rank: int, call: Call) -> torch.Tensor:
    """`Gather` with known indices: one element is a select, neighbours are a slice."""
    if rank == 0:
        picked: torch.Tensor = aten.select.int(data, axis, places[0])
        return picked
    first = places[0] if places else 0
    in_row = bool(places) and first >= 0 and places == list(range(first, first + len(places)))
    if in_row:
        return cut(data, axis, first, first + len(places))
    return data.index_select(axis, wrapped(call, 1, data.shape[axis]))


def _gather_elements(call: Call) -> torch.Tensor:
    data = call.tensor(0)
    axis = call.attribute("axis", 0)
    return data.gather(axis, wrapped(call, 1, data.shape[axis]).long())


def _gather_nd(call: Call) -> torch.Tensor:
    data, index = call.tensor(0), call.tensor(1)
    shared = call.attribute("batch_dims", 0)
    depth = index.shape[-1]
    rest = index.ndim - 1
    places: list[torch.Tensor] = []
    for at in range(shared):
        shape = [-1 if i == at else 1 for i in range(rest)]
        places.append(torch.arange(data.shape[at]).reshape(shape))
    for at in range(depth):
        part = index.select(-1, at)
        part = torch.where(part < 0, part + data.shape[shared + at], part)
        places.append(part)
    return data[tuple(places)]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_elements(call: Call) -> torch.Tensor:
    data, updates = call.tensor(0), call.tensor(2)
    axis = call.attribute("axis", 0)
    index = wrapped(call, 1, data.shape[axis]).long()
    how = call.attribute("reduction", "none")
    if how == "none":
        return data.scatter(axis, index, updates)
    return data.scatter_reduce(axis, index, updates, _REDUCTIONS[how])


def _scatter_nd(call: Call) -> torch.Tensor:
    data, index, updates = call.tensors()
    depth = index.shape[-1]
    how = call.attribute("reduction", "none")
    parts = [index.select(-1, at) for at in range(depth)]
    parts = [torch.where(p < 0, p + data.shape[i], p) for i, p in enumerate(parts)]
    if how in ("none", "add"):
        return data.index_put(tuple(parts), updates, accumulate=how == "add")
    if how not in _REDUCTIONS:
        raise call.refuse(f"unknown reduction {how!r}")
    # Rows of a matrix, one for each place that an index of this depth can name.
    row = torch.zeros_like(parts[0])
    for size, part in zip(data.shape, parts, strict=False):
        row = row * size + part
    inner = list(data.shape[depth:])
    flat = data.reshape([-1, *inner])
    flat_updates = updates.reshape([-1, *inner])
    row = row.reshape([-1, *[1] * len(inner)]).expand(flat_updates.shape)
    return flat.scatter_reduce(0, row, flat_updates, _REDUCTIONS[how]).reshape(data.shape)


def _top_k(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """By a stable sort: of equal values ONNX takes the first, torch.topk takes any."""
    count, axis = call.ints(1, "how many it takes")[0], call.attribute("axis", -1)
    largest = bool(call.attribute("largest", 1))
    values, places = torch.sort(call.tensor(0), stable=True, dim=axis, descending=largest)
    return cut(values, axis, 0, count), cut(places, axis, 0, count)


def _arg(largest: bool) -> Operator:
    def run(call: Call) -> torch.Tensor:
        x = call.tensor(0)
        axis, keep = call.attribute("axis", 0), bool(call.attribute("keepdims", 1))
        find = torch.argmax if largest else torch.argmin
        if not call.attribute("select_last_index", 0):
            return find(x, axis, keepdim=keep)
        from_the_end: torch.Tensor = find(x.flip(axis), axis, keepdim=keep)
        found: torch.Tensor = x.shape[axis] - 1 - from_the_end
        return found

    return run


def _cumulative_sum(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    axis = int(call.ints(1, "its axis")[0])
    backwards = call.attribute("reverse", 0)
    x = x.flip(axis) if backwards else x
    total = torch.cumsum(x, axis, dtype=x.dtype)
    total = total - x if call.attribute("exclusive", 0) else total
    return total.flip(axis) if backwards else total


INDEXING: dict[str, Operator] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
    "ArgMax": _arg(largest=True),
    "ArgMin": _arg(largest=False),
    "CumSum": _cumulative_sum,
}
