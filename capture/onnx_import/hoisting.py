"""Pass: constants of branches and loop bodies become constants of the graph around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from recreplay.capture.onnx_import.graph import Graph, Step, free_name


def hoist_constants(graph: Graph) -> Graph:
    """The graph with all constants its own, under other names where theirs are taken."""
    constants = dict(graph.constants)
    taken = graph.values()
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
            names[name] = free_name(name, {*taken, *own, *names.values()})
        constants |= {names[name]: tensor for name, tensor in inside.constants.items()}
        taken |= set(names.values())
        attributes[key] = _renamed(replace(inside, constants={}), names)
    return replace(step, attributes=attributes)


def _names(graph: Graph) -> set[str]:
    """Of all values that it holds, and the graphs of its steps."""
    found = graph.values()
    for step in graph.steps:
        for value in step.attributes.values():
            found |= _names(value) if isinstance(value, Graph) else set()
    return found


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
