"""Batch normalisation as what it is of a trained model: a factor and a summand for each channel.

Torch's operator gives two more results, which nobody reads, and is one that neither branches can be
stacked over nor loops be fused with before it is taken apart. Behind a linear layer it is a part of
the layer's weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from recreplay.capture.fold_weights import call
from recreplay.capture.plain_layers import is_plain_layer, is_weight
from recreplay.capture.program import Program

aten = torch.ops.aten


def as_factors(program: Program, node: fx.Node, args: Any) -> tuple[fx.Node, None, None] | None:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` of `x` `[B, C, ...]`, in the order of
    torch's own for the CPU; None for any other operator, and for mixed dtypes.

    `node` is the operator as it was exported, `args` what it reads in the program.
    """
    if node.target is not aten._native_batch_norm_legit_no_training.default:
        return None
    source, weight, bias, mean, variance, _, epsilon = args
    given = [a for a in (source, weight, bias, mean, variance) if a is not None]
    if len({a.meta["val"].dtype for a in given}) > 1:
        return None
    factor = call(program, aten.rsqrt.default, call(program, aten.add.Scalar, variance, epsilon))
    if weight is not None:
        factor = call(program, aten.mul.Tensor, factor, weight)
    summand = call(program, aten.neg.default, call(program, aten.mul.Tensor, mean, factor))
    if bias is not None:
        summand = call(program, aten.add.Tensor, bias, summand)
    alone = len(node.all_input_nodes[0].users) == 1
    if alone and program.folds and _is_layer(source):
        return _in_layer(program, source, factor, summand), None, None
    dims = source.meta["val"].ndim - 2
    if dims:
        channels = [-1, *[1] * dims]
        factor = program.call(aten.reshape.default, factor, channels)
        summand = program.call(aten.reshape.default, summand, channels)
    scaled = program.call(aten.mul.Tensor, source, factor)
    return program.call(aten.add.Tensor, scaled, summand), None, None


def _is_layer(node: fx.Node) -> bool:
    """Whether it is a linear layer `[B, in]` to `[B, C]` over weights."""
    if node.target is not aten.linear.default or node.meta["val"].ndim != 2:
        return False
    weights = node.all_input_nodes[1:]
    return is_plain_layer(*weights) and all(map(is_weight, weights))


def _in_layer(program: Program, layer: fx.Node, factor: fx.Node, summand: fx.Node) -> fx.Node:
    """The layer whose weights have the factor and the summand of each unit in them."""
    source, weight, *bias = layer.args
    column = program.call(aten.unsqueeze.default, factor, 1)
    scaled = call(program, aten.mul.Tensor, weight, column)
    if bias and bias[0] is not None:
        summand = call(
            program, aten.add.Tensor, call(program, aten.mul.Tensor, bias[0], factor), summand
        )
    return program.call(aten.linear.default, source, scaled, summand)
