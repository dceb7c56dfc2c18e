"""Pass: the loop that torch's exporter makes of `embedding_bag` becomes one lookup again.

ONNX has no such operator. torch writes `Gather`, then a `Loop` over the bags that cuts the rows of
each bag out by an array of offsets, reduces them and appends to a sequence, which
`ConcatFromSequence` joins. Where the offsets are `Range(0, n, length)`, as for ids `[B, length]`,
the bags have one length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from recreplay.capture.onnx_import.graph import ArrayValue, Graph, Step

_MODES = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max"}
_SAME = {"Identity", "Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze"}


def find_bags(graph: Graph) -> Graph:
    """The graph with each such loop replaced by `recreplay::Bag`."""
    made = graph.producers()
    steps = []
    for step in graph.steps:
        loop = made.get(step.input(0)) if step.op == "ConcatFromSequence" else None
        bag = None if loop is None else _bag(step, loop, made, graph.constants)
        steps.append(step if bag is None else bag)
    return replace(graph, steps=tuple(steps)).pruned()


def _bag(
    join: Step, loop: Step, made: Mapping[str, Step], constants: Mapping[str, torch.Tensor]
) -> Step | None:
    body = loop.attributes.get("body")
    if loop.op != "Loop" or not isinstance(body, Graph) or len(body.inputs) != 4:
        return None
    # The loop carries the sequence and an index, in either order.
    sequence = loop.outputs.index(join.inputs[0])
    index = body.inputs[3 - sequence].name
    inside = body.producers()
    appended = inside.get(body.outputs[1 + sequence])
    started = made.get(loop.input(2 + sequence))
    if appended is None or appended.op != "SequenceInsert" or len(appended.inputs) != 2:
        return None
    if started is None or started.op != "SequenceEmpty":
        return None
    row = inside.get(appended.inputs[1])
    if row is None or row.op != "If":
        return None
    branch = row.attributes["else_branch"].producers()
    reduced = branch.get(row.attributes["else_branch"].outputs[0])
    rows = None if reduced is None else branch.get(reduced.input(0))
    if reduced is None or reduced.op not in _MODES or rows is None or rows.op != "Slice":
        return None
    first, last = inside.get(rows.input(1)), inside.get(rows.input(2))
    if first is None or last is None or first.op != "Slice" or last.op != "Slice":
        return None
    scope = _Scope(inside, constants, index)
    if scope.shift_of(body.outputs[2 - sequence]) != 1:
        return None
    if [scope.shift(first, n) for n in (1, 2)] != [0, 1]:
        return None
    if [scope.shift(last, n) for n in (1, 2)] != [1, 2] or first.input(0) != last.input(0):
        return None
    table, ids, weights = _looked_up(rows.input(0), made, constants)
    length, limit = _regular(first.input(0), ids, made, constants)
    if not table or not length:
        return None
    return Step(
        join.name,
        "recreplay::Bag",
        (table, ids, limit, weights) if weights else (table, ids, limit),
        join.outputs,
        {"length": length, "mode": _MODES[reduced.op]},
        join.opset,
    )


class _Scope:
    """The body of a loop, to read `index + k` in it."""

    def __init__(
        self, inside: Mapping[str, Step], constants: Mapping[str, torch.Tensor], index: str
    ) -> None:
        self._inside, self._constants, self._index = inside, constants, index

    def shift(self, step: Step, at: int) -> int | None:
        """k, where an input of a step is the loop's index and k."""
        return self.shift_of(step.input(at))

    def shift_of(self, name: str) -> int | None:
        """k, where a value is the loop's index and k."""
        if name == self._index:
            return 0
        step = self._inside.get(name)
        if step is None:
            return None
        if step.op in _SAME:
            return self.shift_of(step.input(0))
        if step.op != "Add":
            return None
        base, more = self.shift_of(step.input(0)), self._number(step.input(1))
        return None if base is None or more is None else base + more

    def _number(self, name: str) -> int | None:
        step = self._inside.get(name)
        if step is not None and step.op in _SAME:
            return self._number(step.input(0))
        if step is not None and step.op == "Constant":
            held = step.attributes.get("value")
            value = held.array if isinstance(held, ArrayValue) else None
        else:
            constant = self._constants.get(name)
            value = None if constant is None else constant.numpy()
        return None if value is None or value.size != 1 else int(value.item())


def _looked_up(
    name: str, made: Mapping[str, Step], constants: Mapping[str, torch.Tensor]
) -> tuple[str, str, str]:
    """Table, ids and weights of the ids (empty if all are one) of what the bags reduce."""
    step, weights = _through(name, {"Identity"}, made), ""
    if step is not None and step.op == "Mul":
        weights = step.input(1)
        step = _through(step.input(0), {"Identity"}, made)
        weights = "" if _all_ones(weights, made, constants) else weights
    if step is None or step.op != "Gather" or step.attributes.get("axis", 0) != 0:
        return "", "", ""
    table = constants.get(step.input(0))
    if table is None or table.ndim != 2:
        return "", "", ""
    return step.input(0), step.input(1), weights


def _all_ones(name: str, made: Mapping[str, Step], constants: Mapping[str, torch.Tensor]) -> bool:
    step = made.get(name)
    while step is not None and step.op in (_SAME | {"Expand"}):
        name = step.input(0)
        step = made.get(name)
    value = constants.get(name)
    return value is not None and bool((value == 1).all())


def _regular(
    name: str, ids: str, made: Mapping[str, Step], constants: Mapping[str, torch.Tensor]
) -> tuple[int, str]:
    """The length of the bags and where they end, if the offsets are a range and then the end."""
    step = _through(name, {"Identity", "Cast"}, made)
    if step is None or step.op != "Concat" or len(step.inputs) != 2:
        return 0, ""
    starts = _through(step.inputs[0], {"Identity", "Cast"}, made)
    end = made.get(step.inputs[1])
    if starts is None or starts.op != "Range" or end is None or end.op != "Shape":
        return 0, ""
    first, length = (constants.get(starts.input(at)) for at in (0, 2))
    if end.input(0) != ids or first is None or length is None or int(first.item()) != 0:
        return 0, ""
    return int(length.item()), starts.input(1)


def _through(name: str, same: set[str], made: Mapping[str, Step]) -> Step | None:
    step = made.get(name)
    while step is not None and step.op in same:
        step = made.get(step.input(0))
    return step
