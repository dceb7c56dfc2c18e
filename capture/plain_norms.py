"""Batch normalisation as what it is once a model is trained: a factor and a summand for each channel.

Torch's operator gives two more results, which nobody reads, and is one that neither branches can be
stacked over nor loops be fused with before it is taken apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from recreplay.capture.specialise import Program

aten = torch.ops.aten


def as_factors(program: Program, target: Any, args: Any) -> tuple[fx.Node, None, None] | None:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` of `x` `[B, C, ...]`, summed up in the
    order of torch's own for the CPU; None for any other operator, and for mixed dtypes."""
    if target is not aten._native_batch_norm_legit_no_training.default:
        return None
    source, weight, bias, mean, variance, _, epsilon = args
    given = [a for a in (source, weight, bias, mean, variance) if a is not None]
    if len({a.meta["val"].dtype for a in given}) > 1:
        return None
    shifted = program.call(aten.add.Scalar, variance, epsilon)
    factor = program.call(aten.rsqrt.default, shifted)
    if weight is not None:
        factor = program.call(aten.mul.Tensor, factor, weight)
    summand = program.call(aten.neg.default, program.call(aten.mul.Tensor, mean, factor))
    if bias is not None:
        summand = program.call(aten.add.Tensor, bias, summand)
    dims = source.meta["val"].ndim - 2
    if dims:
        channels = [-1, *[1] * dims]
        factor = program.call(aten.reshape.default, factor, channels)
        summand = program.call(aten.reshape.default, summand, channels)
    scaled = program.call(aten.mul.Tensor, source, factor)
    return program.call(aten.add.Tensor, scaled, summand), None, None
