"""Pass: constants of branches and loop bodies become constants of the graph around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from recreplay.capture.onnx_import.graph import Graph, Step


def hoist_constants(graph: Graph) -> Graph:
    """The graph with all constants its own, under other names where theirs are taken."""
    constants = dict(graph.constants)
    taken = {*constants, *(spec.name for spec in graph.inputs), *graph.producers()}
    steps = tuple(_without_constants(step, constants, taken) for step in graph.steps)
    return replace(graph, steps=steps, constants=constants)


def _without_constants(step: Step, constants: dict[str, torch.Tensor], taken: set[str]) -> Step:
    attributes = dict(step.attributes)
    for key, value in attributes.items():
        if not isinstance(value, Graph):
            continue
        inside = hoist_constants(value)
        own = _names(inside) - set(inside.constants)
        names: dict[str, str] = {}
        for name in inside.constants:
            names[name] = _free(name, {*taken, *own, *names.values()})
        constants |= {names[name]: tensor for name, tensor in inside.constants.items()}
        taken |= set(names.values())
        attributes[key] = _renamed(replace(inside, constants={}), names)
    return replace(step, attributes=attributes)


def _names(graph: Graph) -> set[str]:
    """Of all values that it holds, and the graphs of its steps."""
    found = {*graph.constants, *(spec.name for spec in graph.inputs), *graph.producers()}
    for step in graph.steps:
        for value in step.attributes.values():
            found |= _names(value) if isinstance(value, Graph) else set()
    return found


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """With other names for values that come from outside."""

    def step_of(step: Step) -> Step:
        attributes = {
            key: _renamed(value, names) if isinstance(value, Graph) else value
            for key, value in step.attributes.items()
        }
        inputs = tuple(names.get(name, name) for name in step.inputs)
        return replace(step, inputs=inputs, attributes=attributes)

    outputs = tuple(names.get(name, name) for name in graph.outputs)
    return replace(graph, outputs=outputs, steps=tuple(map(step_of, graph.steps)))
