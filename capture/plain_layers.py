"""Linear layers as rewrites take them: a weight `[out, in]` and, if any, a bias `[out]`.

Torch's `linear` also takes a weight `[in]`, and a bias of whatever shape its result is broadcast
with: one number for all units, or a row for each item. And models write layers as products, of rows
with a weight `[in, out]`, or of a weight with columns, which stacked as they are would repeat the
weight for each row of the batch; and as convolutions (`plain_convolutions`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from recreplay.capture.fold_weights import whole
from recreplay.capture.plain_convolutions import CONVOLUTIONS, of_windows
from recreplay.capture.program import Program
from recreplay.capture.views import base

aten = torch.ops.aten


def is_plain_layer(weight: fx.Node, bias: fx.Node | None = None) -> bool:
    """Whether a linear layer of these is what rewrites take it for."""
    units = weight.meta["val"].shape[:-1]
    return len(units) == 1 and (bias is None or bias.meta["val"].shape == units)


def spell_out(program: Program, source: fx.Node, weight: fx.Node, bias: Any = None) -> fx.Node:
    """Any other one as a product and a sum."""
    multiply = aten.linear.default if weight.meta["val"].ndim == 2 else aten.matmul.default
    product = program.call(multiply, source, weight)
    return product if bias is None else program.call(aten.add.Tensor, product, bias)


def as_layer(program: Program, target: Any, args: Any, kwargs: Any) -> fx.Node | None:
    """The product of what a request makes and a weight as a linear layer; None for anything
    else."""
    if target is aten.linear.default and is_weight(args[0]) and not is_weight(args[1]):
        return _of_rows_behind(program, *args) if len(args) == 2 and not kwargs else None
    if target in CONVOLUTIONS:
        floats = not kwargs and args[0].meta["val"].is_floating_point()
        return of_windows(program, target, args) if floats and is_weight(args[1]) else None
    factors = None if kwargs else _factors(target, args)
    if factors is None:
        return None
    left, right = factors
    if is_weight(left) == is_weight(right) or not left.meta["val"].is_floating_point():
        return None
    dims = left.meta["val"].ndim, right.meta["val"].ndim
    if is_weight(left):
        return _of_columns(program, left, right) if dims[0] == 2 < dims[1] else None
    if dims[1] == 2 <= dims[0]:
        return _of_rows(program, left, right, args[0] if target is aten.addmm.default else None)
    return None


def _factors(target: Any, args: Any) -> tuple[fx.Node, fx.Node] | None:
    """What a product of matrices multiplies, in the order of `matmul`."""
    if target in (aten.matmul.default, aten.mm.default):
        return args[0], args[1]
    if target is aten.addmm.default:
        return args[1], args[2]
    return None


def is_weight(node: fx.Node) -> bool:
    """Whether it is a stored weight, or a view of one."""
    return str(base(node).target).startswith("weight:")


def _of_rows(program: Program, rows: fx.Node, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
    """`[bias +] rows @ weight`, `[..., in]` and `[in, out]` to `[..., out]`."""
    turned = turned_of(program, whole(program, weight))
    if bias is None:
        return program.call(aten.linear.default, rows, turned)
    if is_plain_layer(turned, bias):
        return program.call(aten.linear.default, rows, turned, bias)
    return spell_out(program, rows, turned, bias)


def turned_of(program: Program, weight: fx.Node) -> fx.Node:
    """`[out, in]` of `[in, out]`: what was turned already as it was before."""
    is_turned = weight.target is aten.t.default or (
        weight.target is aten.transpose.int and {d % 2 for d in weight.args[1:]} == {0, 1}  # type: ignore[operator]
    )
    if is_turned:
        return weight.args[0]  # type: ignore[return-value]
    return program.call(aten.t.default, weight)


def _of_rows_behind(program: Program, weight: fx.Node, rows: fx.Node) -> fx.Node | None:
    """`weight @ rows.T`, `[out, in]` and `[k, in]` to `[out, k]`."""
    if weight.meta["val"].ndim != 2 or not rows.meta["val"].is_floating_point():
        return None
    result = program.call(aten.linear.default, rows, whole(program, weight))
    return _laid_turned(program, result, 0, 1)


def _laid_turned(program: Program, result: fx.Node, *dims: int) -> fx.Node:
    """As a product leaves it, which what follows may view."""
    turned = program.call(aten.transpose.int, result, *dims)
    return program.call(aten.clone.default, turned, memory_format=torch.contiguous_format)


def _of_columns(program: Program, weight: fx.Node, columns: fx.Node) -> fx.Node:
    """`weight @ columns`, `[out, in]` and `[..., in, k]` to `[..., out, k]`."""
    weight = whole(program, weight)
    if columns.meta["val"].shape[-1] == 1:
        rows = program.call(aten.squeeze.dims, columns, [-1])
        return program.call(
            aten.unsqueeze.default, program.call(aten.linear.default, rows, weight), -1
        )
    rows = program.call(aten.transpose.int, columns, -2, -1)
    return _laid_turned(program, program.call(aten.linear.default, rows, weight), -2, -1)
