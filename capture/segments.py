"""Cut a planned program into segments: what one stream does between two waits, for one branch.

A segment is one call of one compiled package. With one stream the whole program is one segment.
Since a segment begins at every operator that waits, and ends where the branch changes, launching
segments in the order of their first operators keeps every order that the plan has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from recreplay.capture.jagged_axis import bag_arguments
from recreplay.capture.one_row import VIEWS
from recreplay.capture.program import Program
from recreplay.capture.views import base, is_view
from recreplay.runtime.aten import (
    BYTE_BAGS,
    GROUPED_LOOKUP,
    JAGGED_BAGS,
    ROW_BAGS,
    WEIGHTED_BAGS,
    Operator,
    encode,
    target_name,
)
from recreplay.runtime.plan import Plan, plan_from

aten = torch.ops.aten
# Which arguments of operators are tables, of which the number of rows does not matter.
_TABLE_READS = {
    "aten.embedding.default": (0,),
    "aten.embedding_bag.padding_idx": (0,),
    GROUPED_LOOKUP: (0, 5),
    BYTE_BAGS: (0, 1),
    ROW_BAGS: (0,),
    WEIGHTED_BAGS: (0,),
    JAGGED_BAGS: (0,),
}


def _tables_read(node: fx.Node) -> list[Any]:
    """Tables that an operator reads, whose number of rows does not matter to it."""
    bag = bag_arguments(node) if node.target is aten.embedding_bag.padding_idx else {}
    # torch compares an id that is left out with the number of rows, which is a constant then.
    if bag.get("padding_idx") is not None:
        return []
    return [node.args[at] for at in _TABLE_READS.get(str(node.target), ())]


@dataclass(frozen=True)
class TensorType:
    """Dtype and shape of a contiguous tensor that a segment reads or writes."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SegmentCode:
    """What a segment computes, without saying on what: the unit that is compiled.

    Values are `i0…` (inputs) and `o0…` (operators). `tables` are the positions of inputs that are
    read as tables only, whose number of rows does not matter to the code. Equal code is compiled
    once.
    """

    inputs: tuple[TensorType, ...]
    tables: tuple[int, ...]
    operators: tuple[Operator, ...]
    results: tuple[str, ...]
    outputs: tuple[TensorType, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": [[t.dtype, list(t.shape)] for t in self.inputs],
            "tables": list(self.tables),
            "operators": [op.to_json() for op in self.operators],
            "results": list(self.results),
            "outputs": [[t.dtype, list(t.shape)] for t in self.outputs],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SegmentCode:
        return cls(
            tuple(TensorType(d, tuple(s)) for d, s in data["inputs"]),
            tuple(data["tables"]),
            tuple(Operator.from_json(op) for op in data["operators"]),
            tuple(data["results"]),
            tuple(TensorType(d, tuple(s)) for d, s in data["outputs"]),
        )

    def key(self) -> str:
        """Name of the code, blind to the number of rows of its tables."""
        return code_key(self.to_json())


def code_key(data: dict[str, Any], *more: int) -> str:
    """Name of segment code as JSON, blind to the number of rows of its tables."""
    inputs = [
        [dtype, ["rows", *shape[1:]] if at in data["tables"] else shape]
        for at, (dtype, shape) in enumerate(data["inputs"])
    ]
    named = json.dumps([{**data, "inputs": inputs}, *more])
    return hashlib.sha256(named.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BoundSegment:
    """Segment code and the tensors of the program that it runs on."""

    name: str
    code: SegmentCode
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: tuple[str, ...]
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Piece:
    """An input that is rows of a buffer, from `start` on: one feature's share of a stacked lookup.

    Passed as a tensor of its own, it leaves the segment's code blind to which share it is, so that
    equal branches still share a package.
    """

    name: str
    buffer: str
    start: int
    type: TensorType


def cut(
    program: Program,
    plan: Plan,
    nodes: list[fx.Node],
    branches: tuple[str | None, ...],
    apart: frozenset[fx.Node] = frozenset(),
) -> tuple[Plan, list[BoundSegment]]:
    """The plan of segments, and the segments in its order.

    `nodes[i]` and `branches[i]` belong to the operator named by `plan.steps` of the same name. The
    operators `apart`, which another compiler takes, share no segment with the others.
    """
    by_name = {node.name: (node, branch) for node, branch in zip(nodes, branches, strict=True)}
    groups: list[tuple[int, str | None, list[fx.Node]]] = []
    open_group: dict[int, int] = {}
    one_stream = plan.streams == 1
    for step in plan.steps:
        node, branch = by_name[step.name]
        at = open_group.get(step.stream)
        changes = at is not None and (groups[at][2][0] in apart) != (node in apart)
        if at is None or changes or (not one_stream and (step.waits or groups[at][1] != branch)):
            open_group[step.stream] = len(groups)
            groups.append((step.stream, branch, [node]))
        else:
            groups[at][2].append(node)
    place = {node: i for i, (_, _, members) in enumerate(groups) for node in members}
    crossing = _crossing(program, place)
    segments = []
    edges = set()
    for i, (_, branch, members) in enumerate(groups):
        segment, reads = _lower(program, f"{i}:{branch or 'trunk'}", members, crossing)
        segments.append(segment)
        edges |= {(place[r], i) for r in reads if r in place and place[r] != i}
    streams = [stream for stream, _, _ in groups]
    names = [segment.name for segment in segments]
    return plan_from(plan.strategy, names, streams, sorted(edges)), segments


def _crossing(program: Program, place: dict[fx.Node, int]) -> dict[fx.Node, list[str]]:
    """Values that leave the segment they are made in, and the names they leave under."""
    names: dict[fx.Node, list[str]] = {}
    for output, node in program.outputs.items():
        names.setdefault(node, []).append(f"output:{output}")
    for node in program.graph.nodes:
        if node.op != "call_function" or is_view(node):
            continue
        for read in node.all_input_nodes:
            made = _materialised(read)
            if made in names or base(made) not in place:
                continue
            if place[base(made)] != place[node]:
                names[made] = [f"buffer:{made.name}"]
    return names


def _materialised(node: fx.Node) -> fx.Node:
    """What is stored when `node` crosses: the tensor under its views, one element if it is a
    tuple."""
    while node.op == "call_function" and is_view(node):
        above = node.all_input_nodes[0]
        if not isinstance(above.meta["val"], torch.Tensor):
            return node
        node = above
    return node


def _lower(
    program: Program, name: str, members: list[fx.Node], crossing: dict[fx.Node, list[str]]
) -> tuple[BoundSegment, set[fx.Node]]:
    mine = set(members)
    inputs: dict[fx.Node, str] = {}
    local: dict[fx.Node, str] = {}
    operators: list[Operator] = []
    tables_only: dict[fx.Node, bool] = {}

    def _arrives(node: fx.Node) -> bool:
        root = base(node)
        made_elsewhere = root.op != "placeholder" and root not in mine
        return made_elsewhere and (
            _materialised(node) is node or _piece(node, crossing) is not None
        )

    def value(node: fx.Node) -> str:
        if node in local:
            return local[node]
        if node in inputs:
            return inputs[node]
        if node.op == "placeholder" or _arrives(node):
            inputs[node] = f"i{len(inputs)}"
            return inputs[node]
        return emit(node)

    def emit(node: fx.Node) -> str:
        reads_tables = _tables_read(node)
        for read in node.all_input_nodes:
            value(read)
            if read.op == "placeholder":
                is_table = str(read.target).startswith("weight:") and read in reads_tables
                tables_only[read] = tables_only.get(read, True) and is_table
        own = f"o{len(operators)}"

        def name_of(arg: Any) -> str | None:
            return value(arg) if isinstance(arg, fx.Node) else None

        args = tuple(encode(a, name_of) for a in node.args)
        kwargs = {k: encode(v, name_of) for k, v in node.kwargs.items()}
        local[node] = own
        target = aten.reshape.default if _moved(node, crossing) else node.target
        operators.append(Operator(own, target_name(target), args, kwargs))
        return own

    for member in members:
        emit(member)
    results, outputs, types = [], [], []
    for node, names in crossing.items():
        if base(node) in mine:
            for out in names:
                results.append(value(node))
                outputs.append(out)
                types.append(_type(node))
    code = SegmentCode(
        tuple(_type(n) for n in inputs),
        tuple(i for i, n in enumerate(inputs) if tables_only.get(n, False)),
        tuple(operators),
        tuple(results),
        tuple(types),
    )
    pieces = {n: piece for n in inputs if (piece := _piece(n, crossing)) is not None}
    sources: list[str] = []
    for node in inputs:
        if node in pieces:
            sources.append(f"buffer:{node.name}")
        else:
            sources.append(str(node.target) if node.op == "placeholder" else crossing[node][0])
    segment = BoundSegment(
        name,
        code,
        inputs=tuple(sources),
        outputs=tuple(outputs),
        operators=tuple(m.name for m in members),
        pieces=tuple(pieces.values()),
    )
    return segment, {base(n) for n in inputs}


def _moved(node: fx.Node, crossing: Mapping[fx.Node, list[str]]) -> bool:
    """Whether `node` views as another shape what lies in another order than it was made in: what
    leaves a segment is stored contiguous, and may be written there at once."""
    made = _materialised(node)
    return node.target in VIEWS and made in crossing and not made.meta["val"].is_contiguous()


def _piece(node: fx.Node, crossing: dict[fx.Node, list[str]]) -> Piece | None:
    """`node` as rows of a buffer, if a rewrite marked it as one feature's share of one."""
    if "features" not in node.meta:
        return None
    cut_out = node
    while cut_out.target is aten.view.default:
        cut_out = cut_out.all_input_nodes[0]
    made = cut_out.args[0]
    if cut_out.target is not aten.slice.Tensor or not isinstance(made, fx.Node):
        return None
    buffer = crossing.get(made, [""])[0]
    if not buffer.startswith("buffer:"):
        return None
    start = cut_out.args[2]
    assert isinstance(start, int)
    return Piece(node.name, buffer.removeprefix("buffer:"), start, _type(node))


def _type(node: fx.Node) -> TensorType:
    fake = node.meta["val"]
    return TensorType(str(fake.dtype).removeprefix("torch."), tuple(int(d) for d in fake.shape))
