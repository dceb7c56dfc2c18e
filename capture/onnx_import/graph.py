"""An ONNX graph as plain data: what the passes rewrite and the module runs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recreplay.runtime.errors import UnsupportedModelError

MICROSOFT = "com.microsoft"
OURS = "recreplay"  # operators that the passes make out of several of ONNX
_DEFAULT = {"", "ai.onnx"}


@dataclass(frozen=True)
class ArrayValue:
    """A tensor that can be read whatever mode torch is in: while it traces, its own cannot."""

    array: np.ndarray[Any, Any]
    dtype: torch.dtype


@dataclass(frozen=True)
class Step:
    """One node. `op` is its type, after its domain and `::` where that is not ONNX's own.

    An absent optional input or output is an empty name. Attributes are Python values, tensors
    (`ArrayValue`) or graphs (`Graph`).
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int

    def input(self, at: int) -> str:
        """Name of an input, empty where it is absent."""
        return self.inputs[at] if at < len(self.inputs) else ""

    def __str__(self) -> str:
        return f"operator {self.op} (node {self.name!r})"


@dataclass(frozen=True)
class GraphInput:
    """An input: `shape` holds a number, or the name of a symbolic size (empty if it has none).

    `shape` is None for an input of a branch or a loop that does not say even its rank.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class Graph:
    """Steps in an order in which they can run. Constants are what no input changes."""

    name: str
    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, torch.Tensor]

    def producers(self) -> dict[str, Step]:
        """The step that makes each value."""
        return {out: step for step in self.steps for out in step.outputs if out}

    def values(self) -> set[str]:
        """Names of all its values, without those of the graphs inside of its steps."""
        return {*self.constants, *(spec.name for spec in self.inputs), *self.producers()}

    def readers(self) -> dict[str, list[Step]]:
        """The steps that read each value; a graph output is not a step."""
        found: dict[str, list[Step]] = {}
        for step in self.steps:
            for name in dict.fromkeys(step.inputs):
                found.setdefault(name, []).append(step)
        return found

    def pruned(self) -> Graph:
        """Without the steps and constants that no output needs."""
        needed = set(self.outputs)
        kept: list[Step] = []
        for step in reversed(self.steps):
            if needed.isdisjoint(step.outputs):
                continue
            kept.append(step)
            needed |= {*step.inputs, *_read_inside(step)}
        constants = {k: v for k, v in self.constants.items() if k in needed}
        return replace(self, steps=tuple(reversed(kept)), constants=constants)


def _read_inside(step: Step) -> Iterable[str]:
    """Values of the graph around it that the subgraphs of a step read."""
    for attribute in step.attributes.values():
        if isinstance(attribute, Graph):
            for inner in attribute.steps:
                yield from inner.inputs
                yield from _read_inside(inner)
            yield from attribute.outputs


def from_ir(graph: Any, opset: Mapping[str, int]) -> Graph:
    """The graph of an `onnx_ir.Graph`; `opset` gives the version of each domain."""
    for value in graph.inputs:
        if value.name not in graph.initializers:
            _dtype(value.dtype, f"input {value.name!r}")
    return _convert(graph, opset)


def _convert(graph: Any, opset: Mapping[str, int]) -> Graph:
    constants = {
        str(name): _tensor(value.const_value, f"initializer {name!r}")
        for name, value in graph.initializers.items()
        if value.uses() or value.is_graph_output()
    }
    steps = []
    for at, node in enumerate(graph):
        op = node.op_type if node.domain in _DEFAULT else f"{node.domain}::{node.op_type}"
        steps.append(
            Step(
                name=node.name or f"{at}",
                op=op,
                inputs=tuple("" if v is None else str(v.name) for v in node.inputs),
                outputs=tuple(str(v.name or "") for v in node.outputs),
                attributes={
                    str(k): _attribute(a, opset, f"operator {op} (node {node.name!r})")
                    for k, a in node.attributes.items()
                },
                opset=opset.get("" if node.domain in _DEFAULT else node.domain, 1),
            )
        )
    inputs = tuple(
        GraphInput(str(v.name), _input_dtype(v), _shape(v.shape))
        for v in graph.inputs
        if v.name not in constants
    )
    return Graph(
        str(graph.name or "graph"),
        inputs,
        tuple(str(v.name) for v in graph.outputs),
        tuple(steps),
        constants,
    )


def torch_dtype(code: int, what: str) -> torch.dtype:
    """The torch dtype of an ONNX element type."""
    from onnx import TensorProto

    try:
        name = TensorProto.DataType.Name(code)
    except ValueError:
        name = f"number {code}"
    found = _DTYPES.get(name)
    if found is None:
        raise UnsupportedModelError(
            f"{what} has the element type {name}; supported are {', '.join(_DTYPES)}"
        )
    return found


_DTYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
}


def _dtype(dtype: Any, what: str) -> torch.dtype:
    if dtype is None:
        raise UnsupportedModelError(f"{what} is not a tensor of a known element type")
    return torch_dtype(int(dtype), what)


def _input_dtype(value: Any) -> torch.dtype:
    """Inputs of branches and loops may be sequences; what they are given has a dtype of its own."""
    return torch.float32 if value.dtype is None else _dtype(value.dtype, f"input {value.name!r}")


def _shape(shape: Any) -> tuple[int | str, ...] | None:
    if shape is None:
        return None
    return tuple(d if isinstance(d, int) else str(d.value or "") for d in shape)


def _tensor(tensor: Any, what: str) -> torch.Tensor:
    if tensor is None:
        raise UnsupportedModelError(f"{what} has no value")
    dtype = _dtype(tensor.dtype, what)
    if dtype == torch.bfloat16:
        raw = np.array(tensor.numpy()).view(np.int16)
        return torch.from_numpy(raw).view(torch.bfloat16)
    # A copy: the file's bytes are read-only, and go away with the file.
    return torch.from_numpy(np.array(tensor.numpy())).to(dtype)


def _attribute(attribute: Any, opset: Mapping[str, int], what: str) -> Any:
    kind = attribute.type.name
    if kind in ("FLOAT", "INT", "STRING"):
        return attribute.value
    if kind in ("FLOATS", "INTS", "STRINGS"):
        return list(attribute.value)
    if kind == "TENSOR":
        tensor = _tensor(attribute.value, f"attribute {attribute.name!r} of {what}")
        return ArrayValue(
            (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(), tensor.dtype
        )
    if kind == "GRAPH":
        return _convert(attribute.value, opset)
    raise UnsupportedModelError(
        f"attribute {attribute.name!r} of {what} is of the kind {kind}; supported are numbers, "
        "strings, tensors and graphs"
    )


def free_name(name: str, taken: Container[str]) -> str:
    """`name`, or one like it that is not taken."""
    while name in taken:
        name += "_"
    return name


def names_of(steps: Sequence[Step]) -> str:
    """A few nodes for an error message."""
    shown = ", ".join(repr(s.name) for s in steps[:3])
    return f"{shown} and {len(steps) - 3} more" if len(steps) > 3 else shown
