"""Passes: dense layers and tables get the form that torch's own models have.

Capture then sees the same operators as in a native model: one `linear` for a product with a stored
matrix and the sum with a stored vector, one `embedding` for a table of any rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from recreplay.capture.onnx_import.graph import Graph, Step, free_name


@dataclass
class _Store:
    """Constants of a graph, those that were made of others among them."""

    constants: dict[str, torch.Tensor]
    taken: set[str]  # names of values
    made: dict[tuple[str, str], str] = field(default_factory=dict)

    @staticmethod
    def of(graph: Graph) -> _Store:
        return _Store(dict(graph.constants), graph.values())

    def free(self, name: str) -> str:
        """`name`, or one like it that no value has; it is taken now."""
        found = free_name(name, self.taken)
        self.taken.add(found)
        return found

    def derived(self, name: str, suffix: str, make: Callable[[], torch.Tensor]) -> str:
        """The name of what is made of a constant in one way, once."""
        key = (name, suffix)
        if key not in self.made:
            self.made[key] = self.free(name + suffix)
            self.constants[self.made[key]] = make()
        return self.made[key]


def find_linears(graph: Graph) -> Graph:
    """`MatMul` and `Gemm` with a stored matrix, and the `Add` after them, as `recreplay::Linear`.

    The matrix is stored transposed, and factors of `Gemm` are multiplied into it.
    """
    store = _Store.of(graph)
    readers = graph.readers()
    steps: list[Step] = []
    done: set[str] = set()  # outputs of the sums that went into a layer
    for step in graph.steps:
        if done.intersection(step.outputs):
            continue
        linear = _linear(step, store)
        following = readers.get(step.outputs[0], [])
        if linear is None:
            steps.append(step)
        elif (
            len(linear.inputs) == 2
            and len(following) == 1
            and step.outputs[0] not in graph.outputs
            and (bias := _bias(following[0], step, store.constants))
        ):
            done.add(following[0].outputs[0])
            inputs = (*linear.inputs, bias)
            steps.append(replace(linear, inputs=inputs, outputs=following[0].outputs))
        else:
            steps.append(linear)
    return replace(graph, steps=tuple(steps), constants=store.constants).pruned()


def _linear(step: Step, store: _Store) -> Step | None:
    constants = store.constants
    matrix = constants.get(step.input(1))
    plain = matrix is not None and matrix.ndim == 2 and matrix.is_floating_point()
    if matrix is None or not plain or step.input(0) in constants:
        return None
    given = step.attributes
    if step.op == "MatMul":
        weight = _stored(step.input(1), store, transpose=True, factor=1.0)
        return replace(step, op="recreplay::Linear", inputs=(step.inputs[0], weight), attributes={})
    if step.op != "Gemm" or given.get("transA", 0):
        return None
    rows = bool(given.get("transB", 0))
    inputs = [step.inputs[0]]
    added = step.input(2)
    if added:
        bias = constants.get(added)
        if bias is None or bias.numel() != matrix.shape[0 if rows else 1]:
            return None
    inputs.append(_stored(step.input(1), store, not rows, given.get("alpha", 1.0)))
    if added:
        inputs.append(_vector(added, store, given.get("beta", 1.0)))
    return replace(step, op="recreplay::Linear", inputs=tuple(inputs), attributes={})


def _stored(name: str, store: _Store, transpose: bool, factor: float) -> str:
    """The matrix as a layer wants it, under a name of its own where that is not how it is."""
    if not transpose and factor == 1:
        return name
    matrix = store.constants[name].t() if transpose else store.constants[name]
    suffix = f"{'_t' if transpose else ''}{'' if factor == 1 else f'_{factor:g}'}"
    return store.derived(
        name, suffix, lambda: (matrix if factor == 1 else matrix * factor).contiguous()
    )


def _vector(name: str, store: _Store, factor: float) -> str:
    if store.constants[name].ndim == 1 and factor == 1:
        return name
    vector = store.constants[name].reshape(-1)
    suffix = f"_v{'' if factor == 1 else f'_{factor:g}'}"
    return store.derived(name, suffix, lambda: vector if factor == 1 else vector * factor)


def _bias(step: Step, after: Step, constants: dict[str, torch.Tensor]) -> str:
    """The stored vector that a step adds to the product, or nothing."""
    if step.op != "Add":
        return ""
    other = [name for name in step.inputs if name != after.outputs[0]]
    if len(other) != 1 or other[0] not in constants:
        return ""
    width = constants[after.input(1)].shape[1]
    bias = constants[other[0]]
    return other[0] if bias.numel() == width and bias.ndim in (1, 2) else ""


def flatten_tables(graph: Graph) -> Graph:
    """Tables of another rank than two, read by rows, as matrices, with a reshape after the read."""
    store = _Store.of(graph)
    steps: list[Step] = []
    for step in graph.steps:
        table = store.constants.get(step.input(0)) if step.op == "Gather" else None
        if table is None or not _is_odd_table(step, table, store.constants):
            steps.append(step)
            continue
        rows = partial(table.reshape, table.shape[0], -1)
        derived = store.derived(step.inputs[0], "_rows", rows)
        made = store.free(f"{step.outputs[0]}_rows")
        steps.append(replace(step, inputs=(derived, step.inputs[1]), outputs=(made,)))
        steps.append(
            Step(
                step.name,
                "recreplay::Unrow",
                (made,),
                step.outputs,
                {"row": list(table.shape[1:])},
                step.opset,
            )
        )
    return replace(graph, steps=tuple(steps), constants=store.constants).pruned()


def _is_odd_table(step: Step, table: torch.Tensor, constants: Mapping[str, torch.Tensor]) -> bool:
    return (
        table.ndim in (1, 3, 4)
        and table.is_floating_point()
        and table.numel() > 0
        and step.attributes.get("axis", 0) % table.ndim == 0
        and step.input(1) not in constants
    )
