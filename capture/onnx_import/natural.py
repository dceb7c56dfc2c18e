"""Which values can be no negative index.

An id of a request that reaches a lookup unchanged is checked by the runtime; everything else has
to be proved here, or is wrapped where it is used as an index.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recreplay.capture.onnx_import.graph import Graph, Step

# Operators whose output has no element that an input does not have.
_MOVES = {
    *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split"),
    *("Expand", "Tile", "Cast"),
}
_NEVER = {
    *("Abs", "ArgMax", "ArgMin", "Relu", "Sigmoid", "Softmax", "HardSigmoid", "Shape", "Size"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor"),
}
# Operators whose output is not negative if no input is.
_KEEPS = {"Add", "Mul", "Div", "Min", "Sum", "Concat", "Floor", "Ceil", "Round"}


@dataclass(frozen=True)
class Natural:
    """Names of values that are never negative, and of those that are an input's own elements."""

    proved: frozenset[str]
    given: frozenset[str]


def natural_values(graph: Graph) -> Natural:
    """What is known of the values of a graph."""
    proved = {k for k, v in graph.constants.items() if _is_natural(v)}
    given = {i.name for i in graph.inputs}
    for step in graph.steps:
        if _never_negative(step, proved):
            proved |= set(step.outputs)
        moves = step.op in _MOVES or (step.op == "Gather" and step.input(1) in graph.constants)
        if moves and step.input(0) in given:
            given |= set(step.outputs)
    return Natural(frozenset(proved), frozenset(given))


def _is_natural(value: torch.Tensor) -> bool:
    return value.dtype != torch.bool and value.numel() > 0 and bool((value >= 0).all())


def _never_negative(step: Step, proved: set[str]) -> bool:
    inputs = [name in proved for name in step.inputs if name]
    if step.op in _NEVER:
        return True
    if step.op == "Max":
        return any(inputs)
    if step.op == "Clip":  # the upper limit wins where it lies below the lower one
        return step.input(1) in proved and (not step.input(2) or step.input(2) in proved)
    if step.op == "Mod":
        # The remainder has the sign of the divisor, or with fmod that of the dividend.
        return inputs[0] if step.attributes.get("fmod", 0) else inputs[1]
    if step.op == "Gather":
        return inputs[0]
    if step.op == "Where":
        return all(inputs[1:])
    if step.op in _MOVES:  # its other inputs are shapes and axes
        return inputs[0]
    return step.op in _KEEPS and all(inputs)
