"""Fused operators that ONNX Runtime's optimiser and exporters write into models.

`com.microsoft` is ONNX Runtime's domain; its documentation (ContribOperators.md) defines them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from recreplay.capture.onnx_import.call import Call, Operator
from recreplay.capture.onnx_import.operators.normalisation import rms

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}


def _gelu(approximate: str) -> Operator:
    def run(call: Call) -> torch.Tensor:
        x = call.tensor(0)
        bias = call.maybe(1)
        return F.gelu(x if bias is None else x + bias, approximate=approximate)

    return run


def _quick_gelu(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    return x * torch.sigmoid(call.attribute("alpha", 1.702) * x)


def _fused_matmul(call: Call) -> torch.Tensor:
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        raise call.refuse("transBatchA and transBatchB are not supported")
    a, b = call.tensor(0), call.tensor(1)
    a = a.transpose(-1, -2) if call.attribute("transA", 0) else a
    b = b.transpose(-1, -2) if call.attribute("transB", 0) else b
    alpha = call.attribute("alpha", 1.0)
    product = torch.matmul(a, b)
    return product if alpha == 1 else alpha * product


def _activated(call: Call, x: torch.Tensor) -> torch.Tensor:
    name = call.attribute("activation", "")
    if name == "LeakyRelu":
        return F.leaky_relu(x, call.attribute("activation_alpha", 0.01))
    if name not in _ACTIVATIONS:
        known = ", ".join([*_ACTIVATIONS, "LeakyRelu"])
        raise call.refuse(f"unsupported activation {name!r}; supported are {known}")
    return _ACTIVATIONS[name](x)


def _fused_gemm(call: Call) -> torch.Tensor:
    from recreplay.capture.onnx_import.operators.products import PRODUCTS

    product = PRODUCTS["Gemm"](call)
    assert isinstance(product, torch.Tensor)
    return _activated(call, product)


def _skip(call: Call, bias_at: int) -> torch.Tensor:
    total = call.tensor(0) + call.tensor(1)
    bias = call.maybe(bias_at)
    return total if bias is None else total + bias


def _skip_layer(call: Call) -> tuple[torch.Tensor, ...]:
    total = _skip(call, 4)
    y = F.layer_norm(
        total, [total.shape[-1]], call.tensor(2), call.maybe(3), call.attribute("epsilon", 1e-12)
    )
    return _with_sum(call, y, total)


def _skip_rms(call: Call) -> tuple[torch.Tensor, ...]:
    total = _skip(call, 3)
    return _with_sum(call, rms(total, -1, call.attribute("epsilon", 1e-5), call.tensor(2)), total)


def _with_sum(call: Call, y: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Outputs 1 and 2, the statistics, are for training only."""
    if call.wants(1) or call.wants(2):
        raise call.refuse("its mean and inverse deviation are not supported as outputs")
    return (y, y, y, total) if call.wants(3) else (y,)


MICROSOFT: dict[str, Operator] = {
    "com.microsoft::Gelu": _gelu("none"),
    "com.microsoft::BiasGelu": _gelu("none"),
    "com.microsoft::FastGelu": _gelu("tanh"),
    "com.microsoft::QuickGelu": _quick_gelu,
    "com.microsoft::FusedMatMul": _fused_matmul,
    "com.microsoft::FusedGemm": _fused_gemm,
    "com.microsoft::SkipLayerNormalization": _skip_layer,
    "com.microsoft::SkipSimplifiedLayerNormalization": _skip_rms,
}
