"""Compute what depends on no input, once, when a model is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from recreplay.capture.onnx_import.call import Constant, Value
from recreplay.capture.onnx_import.execution import run_step
from recreplay.capture.onnx_import.graph import Graph, Step
from recreplay.capture.onnx_import.natural import Natural
from recreplay.capture.onnx_import.operators import OPERATORS

_NOTHING = Natural(frozenset(), frozenset())


def fold(graph: Graph) -> Graph:
    """The graph with every step that reads constants alone made one."""
    constants = dict(graph.constants)
    steps = []
    for step in graph.steps:
        if step.op not in OPERATORS or any(i and i not in constants for i in step.inputs):
            steps.append(step)
            continue
        constants |= _evaluate(step, constants)
    return replace(graph, steps=tuple(steps), constants=constants)


def _evaluate(step: Step, constants: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    values: dict[str, Value] = {i: Constant.of(constants[i]) for i in step.inputs if i}
    # What a damaged or hostile model asks for may be larger than any memory.
    with FakeTensorMode(allow_non_fake_inputs=True):
        run_step(step, values, _NOTHING)
    found = run_step(step, values, _NOTHING)
    return {
        name: value.read().contiguous().clone()
        for name, value in found.items()
        if isinstance(value, Constant)
    }
