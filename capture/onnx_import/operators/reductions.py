"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from recreplay.capture.onnx_import.call import Call, Operator
from recreplay.capture.onnx_import.operators.shapes import axes_of

Reduction = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _reduce(function: Reduction) -> Operator:
    def run(call: Call) -> torch.Tensor:
        x = call.tensor(0)
        axes = axes_of(call)
        keep = bool(call.attribute("keepdims", 1))
        if not axes:
            if call.attribute("noop_with_empty_axes", 0):
                return function(x.unsqueeze(0), [0], False)
            axes = list(range(x.ndim))
        if not axes:
            return function(x.reshape(1), [0], False)
        return function(x, axes, keep)

    return run


def _sum(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    if x.is_floating_point():
        if keep and len(axes) == 1:  # so that capture sees the pooling of a lookup
            return x.sum(axes).unsqueeze(axes[0])
        return x.sum(axes, keep)
    return x.sum(axes, keep, dtype=x.dtype)


def _mean(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    if x.is_floating_point():
        if keep and len(axes) == 1:
            return x.mean(axes).unsqueeze(axes[0])
        return x.mean(axes, keep)
    return x.double().mean(axes, keep).to(x.dtype)


def _product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keep, dtype=x.dtype)
    return x


def _log_sum_exp(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.logsumexp(x, axes, keep)


REDUCTIONS: dict[str, Operator] = {
    "ReduceSum": _reduce(_sum),
    "ReduceMean": _reduce(_mean),
    "ReduceMax": _reduce(lambda x, axes, keep: torch.amax(x, axes, keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: torch.amin(x, axes, keep)),
    "ReduceProd": _reduce(_product),
    "ReduceL1": _reduce(lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: _sum(x * x, axes, keep).sqrt()),
    "ReduceLogSum": _reduce(lambda x, axes, keep: _sum(x, axes, keep).log()),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: _sum(x * x, axes, keep)),
}
