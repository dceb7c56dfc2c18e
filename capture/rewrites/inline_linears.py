"""Rewrite: a linear layer of one row, or too small for a matrix product, becomes a product and a
sum.

A call into the matrix library costs some microseconds whatever its size; a product and a sum are
fused by inductor into the loops around them. With one row there is nothing to reuse: the time is
that of reading the weight, which the fused loop does faster than the library. On one AVX-512 core,
1,888 to 1,024 takes 398 us fused and 646 us by the library with weights that are in no cache, 335
and 491 us with them in the last; 512 to 256 takes 49 and 98 us, 32 and 44 us. Layers that
`pack_linears` takes are faster still. Only worth it for segments that inductor compiles.
"""

from __future__ import annotations

from math import prod

import torch
from torch import fx

from recreplay.capture.program import Program

aten = torch.ops.aten
# Multiply-adds of several rows up to which a fused loop beats the call. On one AVX-512 core, 40
# branches of attention pooling replay in 442 us without this rewrite at batch 1, 364 us with this
# limit and 338 us with 65,536, which however makes batch 128 40 % slower; always inlining
# one-column layers nearly doubles it.
_SMALL = 8192
# The same for one lane of a batched product. Where one of 40 branches scores its 20 items, inlining
# gains 7 % at batch 1 (640 multiply-adds a lane) and makes batch 16 (10,240) 60 % slower.
_SMALL_LANE = 1024
_BATCHED = (aten.bmm.default, aten.baddbmm.default)


def inline_linears(program: Program) -> None:
    """Rewrite `program` in place."""
    for node in list(program.graph.nodes):
        if node.target is aten.linear.default and _is_small(node):
            _inline(program, node)
        elif node.target in _BATCHED and _is_small_batched(node):
            _inline_batched(program, node)
    program.sort()
    program.prune()


def inline_columns(program: Program) -> None:
    """Rewrite `program` in place, for CUDA alone: what has one column, whatever its size.

    Such a layer reads its rows once and has nothing to reuse, like those of one row. The library is
    a launch of its own for it, and what comes before it, as the bias and ReLU of stacked layers,
    and after it, as the sigmoid of a score, one more each; a loop of inductor's is one for all.
    What is launched was counted (`tests/emulated`), how long it takes was not measured on a device
    yet.
    """
    for node in list(program.graph.nodes):
        if node.target is aten.linear.default and node.meta["val"].shape[-1] == 1:
            _inline(program, node)
        elif node.target in _BATCHED and not node.kwargs and node.meta["val"].shape[2] == 1:
            _inline_batched(program, node)
    program.sort()
    program.prune()


def _is_small(node: fx.Node) -> bool:
    source, weight = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    out_features, in_features = weight.meta["val"].shape
    rows = prod(source.meta["val"].shape[:-1])
    return rows == 1 or bool(rows * out_features * in_features <= _SMALL)


def _is_small_batched(node: fx.Node) -> bool:
    if node.kwargs:  # beta and alpha
        return False
    _, rows, out_features = node.meta["val"].shape
    source = node.args[-2]
    assert isinstance(source, fx.Node)
    return rows == 1 or bool(rows * out_features * source.meta["val"].shape[2] <= _SMALL_LANE)


def _inline(program: Program, node: fx.Node) -> None:
    source, weight, *bias = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    if weight.meta["val"].shape[0] == 1:
        product = program.call(aten.mul.Tensor, source, weight)
        result = program.call(aten.sum.dim_IntList, product, [-1], True)
    else:
        wide = program.call(aten.unsqueeze.default, source, -2)
        product = program.call(aten.mul.Tensor, wide, weight)
        result = program.call(aten.sum.dim_IntList, product, [-1])
    if bias and bias[0] is not None:
        result = program.call(aten.add.Tensor, result, bias[0])
    program.replace(node, result)


def _inline_batched(program: Program, node: fx.Node) -> None:
    """`[bias +] source @ weight` of each lane: `[F, N, in]`, `[F, in, out]` to `[F, N, out]`."""
    *bias, source, weight = node.args
    turned = program.call(aten.transpose.int, weight, 1, 2)
    if node.meta["val"].shape[2] == 1:
        product = program.call(aten.mul.Tensor, source, turned)
        result = program.call(aten.sum.dim_IntList, product, [-1], True)
    else:
        wide = program.call(aten.unsqueeze.default, source, 2)
        product = program.call(
            aten.mul.Tensor, wide, program.call(aten.unsqueeze.default, turned, 1)
        )
        result = program.call(aten.sum.dim_IntList, product, [-1])
    if bias:
        result = program.call(aten.add.Tensor, result, bias[0])
    program.replace(node, result)
