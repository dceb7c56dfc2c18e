"""Which columns of an input the ids of a lookup are, however they were taken out of it."""

from __future__ import annotations

import operator

import torch
from torch import fx

aten = torch.ops.aten

# Operators that give elements of their first argument, by where these are and not by what they are.
_TAKES = {
    aten.select.int,
    aten.slice.Tensor,
    aten.unbind.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
    aten.flatten.using_ints,
    aten.expand.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    operator.getitem,
}
# Operators that change no id and move none.
_KEEPS = {
    aten._to_copy.default,
    aten.to.dtype,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
}
_INPUT = "input:"


def columns_of(ids: fx.Node) -> tuple[str, tuple[int, ...]] | None:
    """The input `[B, C]` that `ids` are taken from and their columns of it, or None.

    Found by taking the numbers of columns in the place of ids. Inputs of other shapes are None.
    """
    taken = _take(ids)
    if taken is None or not isinstance(taken[1], torch.Tensor):
        return None
    return taken[0], tuple(sorted(set(taken[1].flatten().tolist())))


def _take(node: fx.Node) -> tuple[str, object] | None:
    if node.op == "placeholder":
        name, value = str(node.target), node.meta["val"]
        if not name.startswith(_INPUT) or value.ndim != 2:
            return None
        rows, columns = value.shape
        return name.removeprefix(_INPUT), torch.arange(columns).expand(rows, columns)
    before = node.args[0] if node.args else None
    if node.target not in _TAKES | _KEEPS or not isinstance(before, fx.Node):
        return None
    taken = _take(before)
    if taken is None or node.target in _KEEPS:
        return taken
    name, numbers = taken
    shape = aten.reshape.default  # of a marker, whose memory is another's
    function = shape if node.target in (aten.view.default, aten._unsafe_view.default) else None
    return name, (function or node.target)(numbers, *node.args[1:], **node.kwargs)  # type: ignore[operator]


def never_beyond(ids: fx.Node, rows: int) -> bool:
    """Whether the model computes ids that a table of so many rows has, whatever the request."""
    while _passes(ids):
        ids = ids.args[0]  # type: ignore[assignment]
    if ids.meta["val"].is_floating_point():  # where NaN is within every range
        return False
    if ids.target is aten.remainder.Scalar:
        return isinstance(ids.args[1], int) and 0 < ids.args[1] <= rows
    if ids.target is aten.clamp.default:
        low, high = (*ids.args[1:], None, None)[:2]
        return isinstance(low, int) and isinstance(high, int) and 0 <= low <= high < rows
    return False


def _passes(node: fx.Node) -> bool:
    """Whether a node gives some or all of its argument's ids unchanged."""
    known = node.target in _TAKES | _KEEPS
    return node.op == "call_function" and known and isinstance(node.args[0], fx.Node)
