"""Items of lists, read from where rows that are padded to one length have them."""

from __future__ import annotations

import torch
from torch import fx

from recreplay.capture.program import Program

aten = torch.ops.aten


def items_of_places(program: Program, dense: fx.Node, offsets: fx.Node, room: int) -> fx.Node:
    """`_padded_dense_to_jagged_forward` in a bucket: `[rows, longest, D]` to `[room, D]`.

    `offsets` are where each row's items begin, and where the last one's end. torch's own wants as
    many items as there is room for. Items of a list that is longer than `longest` are zero.
    """
    rows, longest, *rest = dense.meta["val"].shape
    places, none = _places(program, offsets, rows, longest, room)
    flat = program.call(aten.reshape.default, dense, [rows * longest, *rest])
    items = program.call(aten.index_select.default, flat, 0, places)
    return program.call(
        aten.masked_fill.Scalar, items, program.call(aten.unsqueeze.default, none, 1), 0.0
    )


def _places(
    program: Program, offsets: fx.Node, rows: int, longest: int, room: int
) -> tuple[fx.Node, fx.Node]:
    """Of each item the place that it has, all rows' places in turn, int64 `[room]`, and whether it
    has none, as what is in no row."""
    items = program.constant(torch.arange(room, dtype=offsets.meta["val"].dtype))
    after = program.call(aten.searchsorted.Tensor, offsets, items, right=True)
    row = program.call(aten.sub.Tensor, after, 1)
    begins = program.call(aten.index_select.default, offsets, 0, row)
    at = program.call(aten.sub.Tensor, items, begins)
    beyond = program.call(aten.ge.Scalar, at, longest)
    none = program.call(aten.logical_or.default, beyond, program.call(aten.ge.Scalar, row, rows))
    first = program.call(aten.mul.Tensor, row, longest)
    place = program.call(aten.add.Tensor, first, at)
    return program.call(aten.masked_fill.Scalar, place, none, 0), none
