"""Operators on each element: arithmetic, comparison, logic, bits, casts and choices."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from recreplay.capture.onnx_import.call import Call, Number, Operator
from recreplay.capture.onnx_import.graph import torch_dtype

Pair = Callable[[Any, Any], Any]


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Operator:
    return lambda call: function(call.tensor(0))


def _operands(call: Call) -> tuple[torch.Tensor | Number, torch.Tensor | Number]:
    """Two operands of which one at most is a number."""
    if call.constant(1) is not None:
        first = call.tensor(0)
        return first, call.operand(1, first.ndim)
    second = call.tensor(1)
    return call.operand(0, second.ndim), second


def _binary(function: Pair) -> Operator:
    """By a Python operator, which takes a number on either side."""
    return lambda call: function(*_operands(call))


def _tensors(function: Pair) -> Operator:
    return lambda call: function(call.tensor(0), call.tensor(1))


def _divide(call: Call) -> torch.Tensor:
    first, second = call.tensor(0), call.operand(1, call.tensor(0).ndim)
    if first.is_floating_point():
        quotient: torch.Tensor = first / second
        return quotient
    return torch.div(first, second, rounding_mode="trunc")


def _modulo(call: Call) -> torch.Tensor:
    first = call.tensor(0)
    second: Any = call.operand(1, first.ndim)
    if call.attribute("fmod", 0):
        return torch.fmod(first, second)
    return torch.remainder(first, second)


def _power(call: Call) -> torch.Tensor:
    base = call.tensor(0)
    raised: torch.Tensor = base ** call.operand(1, base.ndim)
    return raised.to(base.dtype) if raised.dtype != base.dtype else raised


def _fold(function: Pair) -> Operator:
    return lambda call: reduce(function, call.tensors())


def _extreme(function: Pair, clamp: Pair) -> Operator:
    def run(call: Call) -> torch.Tensor:
        limit = _operands(call)[1] if len(call) == 2 else None
        if isinstance(limit, (int, float)):
            clamped: torch.Tensor = clamp(call.tensor(0), limit)
            return clamped
        found: torch.Tensor = reduce(function, call.tensors())
        return found

    return run


def _clip(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    limits = [call.operand(i, x.ndim) if call.has(i) else None for i in (1, 2)]
    if any(isinstance(limit, torch.Tensor) for limit in limits):
        low, high = call.maybe(1), call.maybe(2)
        return torch.clamp(x, low, high)
    low_number, high_number = limits
    if low_number is None and high_number is None:
        return x
    return torch.clamp(x, low_number, high_number)  # type: ignore[arg-type]


def _cast(call: Call) -> torch.Tensor:
    return call.tensor(0).to(torch_dtype(call.required("to"), str(call.step)))


def _where(call: Call) -> torch.Tensor:
    condition = call.tensor(0)
    if call.constant(2) is not None:
        chosen = call.tensor(1)
        return torch.where(condition, chosen, call.operand(2, chosen.ndim))
    other = call.tensor(2)
    return torch.where(condition, call.operand(1, other.ndim), other)


def _is_infinite(call: Call) -> torch.Tensor:
    x = call.tensor(0)
    up, down = call.attribute("detect_positive", 1), call.attribute("detect_negative", 1)
    if up and down:
        return torch.isinf(x)
    return torch.isposinf(x) if up else torch.isneginf(x) if down else torch.zeros_like(x).bool()


def _shift(call: Call) -> torch.Tensor:
    left = call.required("direction") == "LEFT"
    function = torch.bitwise_left_shift if left else torch.bitwise_right_shift
    return function(call.tensor(0), call.tensor(1))


def _dropout(call: Call) -> tuple[torch.Tensor, ...]:
    """At inference it passes its input on; the mask, where it is asked for, drops nothing."""
    training = call.dims(2)
    if call.has(2) and (training is None or bool(training.flat()[0])):
        raise call.refuse("training_mode draws random numbers; a replay is for inference")
    x = call.tensor(0)
    return (x, torch.ones_like(x, dtype=torch.bool)) if call.wants(1) else (x,)


ELEMENTWISE: dict[str, Operator] = {
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _divide,
    "Mod": _modulo,
    "Pow": _power,
    "Equal": _binary(operator.eq),
    "Greater": _binary(operator.gt),
    "GreaterOrEqual": _binary(operator.ge),
    "Less": _binary(operator.lt),
    "LessOrEqual": _binary(operator.le),
    "And": _tensors(torch.logical_and),
    "Or": _tensors(torch.logical_or),
    "Xor": _tensors(torch.logical_xor),
    "Not": _unary(torch.logical_not),
    "BitwiseAnd": _tensors(torch.bitwise_and),
    "BitwiseOr": _tensors(torch.bitwise_or),
    "BitwiseXor": _tensors(torch.bitwise_xor),
    "BitwiseNot": _unary(torch.bitwise_not),
    "BitShift": _shift,
    "Max": _extreme(torch.maximum, torch.clamp_min),
    "Min": _extreme(torch.minimum, torch.clamp_max),
    "Sum": _fold(operator.add),
    "Mean": lambda call: reduce(operator.add, call.tensors()) / len(call),
    "Abs": _unary(torch.abs),
    "Neg": _unary(torch.neg),
    "Sqrt": _unary(torch.sqrt),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Reciprocal": _unary(torch.reciprocal),
    "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil),
    "Round": _unary(torch.round),
    "Sign": _unary(torch.sign),
    "Erf": _unary(torch.erf),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Tan": _unary(torch.tan),
    "Asin": _unary(torch.asin),
    "Acos": _unary(torch.acos),
    "Atan": _unary(torch.atan),
    "Sinh": _unary(torch.sinh),
    "Cosh": _unary(torch.cosh),
    "Asinh": _unary(torch.asinh),
    "Acosh": _unary(torch.acosh),
    "Atanh": _unary(torch.atanh),
    "IsNaN": _unary(torch.isnan),
    "IsInf": _is_infinite,
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": lambda call: call.tensor(0).to(call.tensor(1).dtype),
    "Where": _where,
    "Identity": lambda call: call.tensor(0),
    "Dropout": _dropout,
}
