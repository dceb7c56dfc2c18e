"""Normalisations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recreplay.capture.onnx_import.call import Call, Operator

_EPSILON = 1e-5


def _batch(call: Call) -> torch.Tensor:
    if call.attribute("training_mode", 0):
        raise call.refuse("training_mode computes statistics of the batch; export for inference")
    x, scale, bias, mean, variance = call.tensors()
    return F.batch_norm(
        x, mean, variance, scale, bias, False, 0.0, call.attribute("epsilon", _EPSILON)
    )


def _instance(call: Call) -> torch.Tensor:
    x, scale, bias = call.tensors()
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, call.attribute("epsilon", 1e-5))


def _layer(call: Call) -> tuple[torch.Tensor, ...]:
    x, scale, bias = call.tensor(0), call.tensor(1), call.maybe(2)
    axis = call.attribute("axis", -1) % x.ndim
    epsilon = call.attribute("epsilon", _EPSILON)
    sizes = list(x.shape[axis:])
    whole = list(scale.shape) == sizes and (bias is None or list(bias.shape) == sizes)
    if whole:
        y = F.layer_norm(x, sizes, scale, bias, epsilon)
    else:
        y = F.layer_norm(x, sizes, eps=epsilon) * scale
        y = y if bias is None else y + bias
    if not (call.wants(1) or call.wants(2)):
        return (y,)
    axes = list(range(axis, x.ndim))
    mean = x.mean(axes, True)
    return y, mean, torch.rsqrt((x - mean).square().mean(axes, True) + epsilon)


def rms(x: torch.Tensor, axis: int, epsilon: float, scale: torch.Tensor) -> torch.Tensor:
    """Divided by the root of the mean square over the last axes, from `axis` on."""
    axes = list(range(axis % x.ndim, x.ndim))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    normal = wide * torch.rsqrt(wide.square().mean(axes, True) + epsilon)
    return normal.to(x.dtype) * scale


def _rms(call: Call) -> torch.Tensor:
    axis, epsilon = call.attribute("axis", -1), call.attribute("epsilon", _EPSILON)
    return rms(call.tensor(0), axis, epsilon, call.tensor(1))


def _group(call: Call) -> torch.Tensor:
    x, scale, bias = call.tensors()
    groups = call.required("num_groups")
    y = F.group_norm(x, groups, eps=call.attribute("epsilon", _EPSILON))
    if call.opset < 21:  # one scale for each group, not for each channel
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    shape = [1, -1, *[1] * (x.ndim - 2)]
    return y * scale.reshape(shape) + bias.reshape(shape)


def _lp(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    axis, power = call.attribute("axis", -1), call.attribute("p", 2)
    size = x.abs().sum(axis, True) if power == 1 else x.square().sum(axis, True).sqrt()
    return torch.where(size == 0, torch.zeros_like(x), x / size)


def _mean_variance(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    axes = call.attribute("axes", [0, 2, 3])
    centred = x - x.mean(axes, True)
    return centred / (centred.square().mean(axes, True).sqrt() + 1e-9)


NORMALISATION: dict[str, Operator] = {
    "BatchNormalization": _batch,
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
    "RMSNormalization": _rms,
    "GroupNormalization": _group,
    "LpNormalization": _lp,
    "MeanVarianceNormalization": _mean_variance,
}
