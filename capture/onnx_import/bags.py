"""Pass: the loop that torch's exporter makes of `embedding_bag` becomes one lookup again.

ONNX has no such operator; `bag_loop` says what torch writes instead. Where the bags begin at
`Range(0, n, length)`, as for ids `[B, length]`, they have one length. All others are jagged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from recreplay.capture.onnx_import.bag_loop import BagLoop, read_loop
from recreplay.capture.onnx_import.graph import Graph, Step
from recreplay.capture.onnx_import.patterns import DiffersError
from recreplay.runtime.errors import UnsupportedModelError

BAG, JAGGED_BAG = "recreplay::Bag", "recreplay::JaggedBag"


def find_bags(graph: Graph) -> Graph:
    """The graph with each such loop replaced by `recreplay::Bag` or `recreplay::JaggedBag`.

    Raises `UnsupportedModelError` for any other loop that makes a sequence.
    """
    made = graph.producers()
    steps = []
    for step in graph.steps:
        loop = made.get(step.input(0)) if step.op == "ConcatFromSequence" else None
        if loop is None or loop.op != "Loop":
            steps.append(step)
            continue
        try:
            found = read_loop(step, loop, graph)
        except DiffersError as error:
            raise UnsupportedModelError(
                f"{step} joins a sequence, which is supported only as torch.onnx.export(dynamo="
                f"True) writes embedding_bag with float32 tables; in its {loop}, {error}: "
                f"{_advice(loop)}"
            ) from error
        steps.append(_bag(step, found, made, graph.constants))
    return replace(graph, steps=tuple(steps)).pruned()


def _advice(loop: Step) -> str:
    body = loop.attributes.get("body")
    if isinstance(body, Graph) and any(step.op == "Loop" for step in body.steps):
        return (
            "it has a loop of its own, as torch leaves out the ids of a padding_idx; capture the "
            "PyTorch model itself, or export it without padding_idx (for a sum, with zeros in that "
            "row of the table)"
        )
    return "export the model again, or pool without a sequence"


def _bag(
    join: Step, found: BagLoop, made: Mapping[str, Step], constants: Mapping[str, torch.Tensor]
) -> Step:
    length, limit = _regular(found, made, constants)
    divided = limit if length else found.offsets
    inputs = (found.table, found.ids, divided, *([found.weights] if found.weights else []))
    told = {"length": length} if length else {"with_end": found.with_end}
    return Step(
        join.name,
        BAG if length else JAGGED_BAG,
        inputs,
        join.outputs,
        {"mode": found.mode, **told},
        join.opset,
    )


def _regular(
    found: BagLoop, made: Mapping[str, Step], constants: Mapping[str, torch.Tensor]
) -> tuple[int, str]:
    """The length of the bags and where they end, if they begin at a range; else 0."""
    starts = made.get(_origin(found.offsets, made))
    if found.with_end or starts is None or starts.op != "Range":
        return 0, ""
    first, length = (constants.get(starts.input(at)) for at in (0, 2))
    if first is None or length is None or int(first.item()) != 0:
        return 0, ""
    return int(length.item()), starts.input(1)


@dataclass(frozen=True)
class JaggedPool:
    """What a jagged bag is made of: inputs of the model.

    `values` are those with an item per id; `offsets` has an item per bag, and one more if
    `with_end`. `offsets` is empty where the model computes them.
    """

    values: tuple[str, ...]
    offsets: str
    with_end: bool


def jagged_pools(graph: Graph) -> list[JaggedPool]:
    """Every jagged bag of a graph, by its inputs."""
    made = graph.producers()
    names = {i.name for i in graph.inputs}
    found = []
    for step in graph.steps:
        if step.op == JAGGED_BAG:
            offsets = _origin(step.input(2), made)
            values = (_origin(name, made) for name in (step.input(1), step.input(3)) if name)
            found.append(
                JaggedPool(
                    tuple(name for name in values if name in names),
                    offsets if offsets in names else "",
                    step.attributes["with_end"],
                )
            )
    return found


def _origin(name: str, made: Mapping[str, Step]) -> str:
    """The value that another is a copy of, as a vector or as integers of another width."""
    step = made.get(name)
    while step is not None and step.op in ("Identity", "Cast", "Reshape"):
        name = step.input(0)
        step = made.get(name)
    return name
