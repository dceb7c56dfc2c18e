"""Matrix products, contractions and convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from recreplay.capture.onnx_import.call import Call, Operator


def _gemm(call: Call) -> torch.Tensor:
    a, b, c = call.tensor(0), call.tensor(1), call.maybe(2)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    a = a.t() if call.attribute("transA", 0) else a
    product = F.linear(a, b) if call.attribute("transB", 0) else a @ b
    product = product if alpha == 1 else alpha * product
    if c is None or beta == 0:
        return product
    return product + (c if beta == 1 else beta * c)


def _linear(call: Call) -> torch.Tensor:
    """Ours: `x @ w.T + b` with a stored weight, from `MatMul`, `Gemm` and `Add`."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.maybe(2)
    if bias is None or bias.ndim == 1:
        return F.linear(x, weight, bias)
    return F.linear(x, weight) + bias if x.ndim < 2 else F.linear(x, weight, bias.reshape(-1))


def _einsum(call: Call) -> torch.Tensor:
    equation = call.required("equation").replace(" ", "")
    return torch.einsum(equation, *call.tensors())


def padding(call: Call, x: torch.Tensor, kernel: list[int], value: float) -> torch.Tensor:
    """`x` padded as the attributes of a convolution or pooling say."""
    mode = call.attribute("auto_pad", "NOTSET")
    count = len(kernel)
    strides, dilations = strides_of(call, count)
    if mode == "VALID":
        return x
    if mode == "NOTSET":
        pads = call.attribute("pads", [0] * (2 * count))
    else:
        before, after = [], []
        for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
            small, large = total // 2, total - total // 2
            before.append(large if mode == "SAME_LOWER" else small)
            after.append(small if mode == "SAME_LOWER" else large)
        pads = [*before, *after]
    if not any(pads):
        return x
    around: list[int] = []
    for axis in reversed(range(count)):
        around += [pads[axis], pads[count + axis]]
    return F.pad(x, around, value=value)


def strides_of(call: Call, count: int) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    return call.attribute("strides", [1] * count), call.attribute("dilations", [1] * count)


def _convolve(call: Call) -> torch.Tensor:
    x, weight = call.tensor(0), call.tensor(1)
    count = x.ndim - 2
    functions: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    if count not in functions:
        raise call.refuse(f"its input has {count} spatial sizes; supported are 1 to 3")
    kernel = [int(k) for k in weight.shape[2:]]
    strides, dilations = strides_of(call, count)
    padded = padding(call, x, kernel, 0.0)
    found: torch.Tensor = functions[count](
        padded, weight, call.maybe(2), strides, 0, dilations, call.attribute("group", 1)
    )
    return found


def _max_pool(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    kernel = call.required("kernel_shape")
    if call.attribute("ceil_mode", 0) or call.wants(1):
        raise call.refuse("ceil_mode and the indices of the largest are not supported")
    functions: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
    if len(kernel) not in functions:
        raise call.refuse(f"it has {len(kernel)} spatial sizes; supported are 1 to 3")
    strides, dilations = strides_of(call, len(kernel))
    lowest = -float("inf") if x.is_floating_point() else float(torch.iinfo(x.dtype).min)
    padded = padding(call, x, kernel, lowest)
    found: torch.Tensor = functions[len(kernel)](padded, kernel, strides, 0, dilations)
    return found


PRODUCTS: dict[str, Operator] = {
    "MatMul": lambda call: torch.matmul(call.tensor(0), call.tensor(1)),
    "Gemm": _gemm,
    "recreplay::Linear": _linear,
    "Einsum": _einsum,
    "Conv": _convolve,
    "MaxPool": _max_pool,
    "GlobalMaxPool": lambda call: call.tensor(0).amax(list(range(2, call.tensor(0).ndim)), True),
    "GlobalAveragePool": lambda call: call.tensor(0).mean(
        list(range(2, call.tensor(0).ndim)), True
    ),
}
