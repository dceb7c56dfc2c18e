"""Convolutions along one dimension as linear layers over windows.

A window of `k` items lies end to end in one row, which meets the weight once. torch's convolutions
for a CPU set up a primitive of oneDNN in every call: three items of 64 values to 64, over lists of
30, take 19 us at batch 1 so and 6 as a layer, 115 and 56 at 16, and 591 and 427 at 128 (one Zen 5
core). Images whose windows are one item wide (CCPM, FGCNN) stay torch's: of few channels, they take
half as long so at 128 rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from recreplay.capture.fold_weights import laid_out
from recreplay.capture.program import Program

aten = torch.ops.aten
CONVOLUTIONS = (
    *(aten.conv1d.default, aten.conv1d.padding),
    *(aten.conv2d.default, aten.conv2d.padding),
)
# Items of a window up to which they are put together one by one, which is less at batch 1 (48 us
# and 62 with 5 of 64 values on a Skylake Xeon), but of as many operators.
_FEW = 8
# Values of all windows, beyond which they are left to torch: 64 MB.
_MOST = 1 << 24


def of_windows(program: Program, target: Any, args: Any) -> fx.Node | None:
    """A convolution `[B, in, T]`, or one of `[B, in, H, W]` whose windows are as wide or as high as
    what they see, as a layer; None of any other, and where a weight would be laid out for each
    request."""
    if target in (aten.conv1d.default, aten.conv1d.padding):
        return _along(program, *args)
    if target in (aten.conv2d.default, aten.conv2d.padding):
        return _of_images(program, *args)
    return None


def _pads(padding: Any, window: int, dilation: int, dim: int) -> tuple[int, int]:
    """How many items of nothing are put before and behind; `same` puts the odd one behind."""
    if isinstance(padding, str):
        both = dilation * (window - 1) if padding == "same" else 0
        return both // 2, both - both // 2
    return padding[dim], padding[dim]


def _along(
    program: Program,
    source: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Any = (1,),
    padding: Any = (0,),
    dilation: Any = (1,),
    groups: int = 1,
) -> fx.Node | None:
    """`[B, in, T]` to `[B, out, T']` by a weight `[out, in, k]`."""
    if groups != 1 or source.meta["val"].ndim != 3:
        return None
    batch, channels, items = source.meta["val"].shape
    window = weight.meta["val"].shape[2]
    pads = _pads(padding, window, dilation[0], 0)
    if _is_long(batch * (items + sum(pads)), window, channels):
        return None
    if window == 1:
        flat: fx.Node | None = program.call(aten.squeeze.dims, weight, [2])
    else:
        flat = _laid_out(program, weight, [0, 2, 1])
    if flat is None:
        return None
    rows = program.call(aten.transpose.int, source, 1, 2)
    return _layer(program, rows, flat, bias, window, stride[0], pads, dilation[0])


def _of_images(
    program: Program,
    source: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> fx.Node | None:
    """`[B, in, H, W]` by a weight `[out, in, H, k]` or `[out, in, k, W]`."""
    if groups != 1 or source.meta["val"].ndim != 4:
        return None
    batch, channels, *sizes = source.meta["val"].shape
    window = weight.meta["val"].shape[2:]
    pads = [_pads(padding, window[dim], dilation[dim], dim) for dim in (0, 1)]
    for across in (1, 0):  # the dimension that a window spans
        along = 1 - across
        # One window fits across, so that it has neither a stride nor gaps there.
        if window[across] != sizes[across] or any(pads[across]):
            continue
        if _is_long(batch * (sizes[along] + sum(pads[along])), window[along], channels):
            return None
        flat = _laid_out(program, weight, [0, 2 + along, 1, 2 + across])
        if flat is None:
            return None
        turned = program.call(aten.permute.default, source, [0, 2 + along, 1, 2 + across])
        shape = [batch, sizes[along], channels * sizes[across]]
        rows = program.call(aten.reshape.default, turned, shape)
        made = _layer(
            program,
            *(rows, flat, bias, window[along], stride[along], pads[along], dilation[along]),
        )
        return program.call(aten.unsqueeze.default, made, 2 + across)
    return None


def _is_long(rows: int, window: int, channels: int) -> bool:
    """Whether windows laid out end to end would be more memory than torch's convolution is worth
    replacing for."""
    return rows * window * channels > _MOST


def _laid_out(program: Program, weight: fx.Node, order: list[int]) -> fx.Node | None:
    """A weight `[out, window]`, in the order of what windows see."""
    turned = program.call(aten.permute.default, weight, order)
    flat = program.call(aten.reshape.default, turned, [weight.meta["val"].shape[0], -1])
    return laid_out(program, flat)


def _layer(
    program: Program,
    rows: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    window: int,
    stride: int,
    pads: tuple[int, int],
    dilation: int,
) -> fx.Node:
    """`[B, T, in]` to `[B, out, T']`."""
    if any(pads):
        rows = program.call(aten.constant_pad_nd.default, rows, [0, 0, *pads], 0.0)
    if window > 1 or stride > 1:
        rows = _windows(program, rows, window, stride, dilation)
    given = (rows, weight) if bias is None else (rows, weight, bias)
    made = program.call(aten.linear.default, *given)
    return program.call(aten.transpose.int, made, 1, 2)


def _windows(program: Program, rows: fx.Node, window: int, stride: int, dilation: int) -> fx.Node:
    """`[B, T, in]` to `[B, T', window * in]`."""
    batch, items, channels = rows.meta["val"].shape
    count = (items - dilation * (window - 1) - 1) // stride + 1
    if count == 1 and window == items:
        return program.call(aten.reshape.default, rows, [batch, 1, items * channels])
    if window <= _FEW or dilation > 1:
        end = items - dilation * (window - 1)
        parts = [
            program.call(aten.slice.Tensor, rows, 1, i * dilation, i * dilation + end, stride)
            for i in range(window)
        ]
        return parts[0] if window == 1 else program.call(aten.cat.default, parts, 2)
    seen = program.call(aten.unfold.default, rows, 1, window, stride)
    turned = program.call(aten.permute.default, seen, [0, 1, 3, 2])
    return program.call(aten.reshape.default, turned, [batch, count, window * channels])
