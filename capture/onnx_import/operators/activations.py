"""Activation functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from recreplay.capture.onnx_import.call import Call, Operator


def _plain(function: Callable[[torch.Tensor], torch.Tensor]) -> Operator:
    return lambda call: function(call.tensor(0))


def _softmax(function: Callable[..., torch.Tensor]) -> Operator:
    return lambda call: function(call.tensor(0), dim=call.attribute("axis", -1))


def _hardmax(call: Call) -> torch.Tensor:
    x, axis = call.tensor(0), call.attribute("axis", -1)
    best = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, best, 1.0)


def _prelu(call: Call) -> torch.Tensor:
    x, slope = call.tensor(0), call.tensor(1)
    if slope.numel() == 1 and slope.ndim <= x.ndim:
        return F.prelu(x, slope.reshape(1))
    return torch.where(x < 0, x * slope, x)


def _selu(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    alpha = call.attribute("alpha", 1.67326319217681884765625)
    gamma = call.attribute("gamma", 1.05070102214813232421875)
    scaled: torch.Tensor = gamma * torch.where(x > 0, x, alpha * torch.expm1(x))
    return scaled


def _hard_sigmoid(call: Call) -> torch.Tensor:
    scaled = call.tensor(0) * call.attribute("alpha", 0.2) + call.attribute("beta", 0.5)
    return torch.clamp(scaled, 0.0, 1.0)


def _thresholded_relu(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    return torch.where(x > call.attribute("alpha", 1.0), x, 0.0)


def _shrink(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    lambd, bias = call.attribute("lambd", 0.5), call.attribute("bias", 0.0)
    small = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, small)


def _gelu(call: Call) -> torch.Tensor:
    return F.gelu(call.tensor(0), approximate=call.attribute("approximate", "none"))


def _swish(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    return x * torch.sigmoid(call.attribute("alpha", 1.0) * x)


ACTIVATIONS: dict[str, Operator] = {
    "Relu": _plain(torch.relu),
    "LeakyRelu": lambda call: F.leaky_relu(call.tensor(0), call.attribute("alpha", 0.01)),
    "PRelu": _prelu,
    "Elu": lambda call: F.elu(call.tensor(0), call.attribute("alpha", 1.0)),
    "Celu": lambda call: F.celu(call.tensor(0), call.attribute("alpha", 1.0)),
    "Selu": _selu,
    "ThresholdedRelu": _thresholded_relu,
    "Shrink": _shrink,
    "Sigmoid": _plain(torch.sigmoid),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(F.hardswish),
    "Swish": _swish,
    "Mish": _plain(F.mish),
    "Tanh": _plain(torch.tanh),
    "Softplus": _plain(F.softplus),
    "Softsign": _plain(F.softsign),
    "Gelu": _gelu,
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Hardmax": _hardmax,
}
