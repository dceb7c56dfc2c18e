"""The loop that torch's exporter makes of `embedding_bag`, read operator by operator.

`Gather` reads the rows of all ids. A `Loop` over the bags cuts the rows of each out by an array of
offsets, pools them, and appends the pooled row to a sequence, which `ConcatFromSequence` joins. A
bag without ids is a row of zeros. The last bag is special: the mean divides by the ids from its
start to the end, and the maximum takes all of these. Both are what the offsets say where they end
with the number of ids, as the offsets of a request do. (torch 2.13, onnxscript's `embedding_bag`.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recreplay.capture.onnx_import.graph import Graph, Step
from recreplay.capture.onnx_import.patterns import (
    ZEROS,
    Branches,
    DiffersError,
    Match,
    Pattern,
    Scope,
    Value,
    op,
)

_FLOAT = 1  # TensorProto.FLOAT
_PLACE = op("Reshape", "index", -1)
_START = op("Slice", "offsets", _PLACE, op("Add", _PLACE, 1))
_END = op("Slice", "offsets", op("Add", _PLACE, 1), op("Add", _PLACE, 2))
_ROWS = op("Slice", "rows", _START, _END)
_IS_LAST = op("Equal", "index", op("Sub", "number of bags", 1))
_LEFT = op("Sub", op("Shape", "counted ids", start=0, end=1), _START)
_SUM = op("ReduceSum", _ROWS, 0)
_TO_THE_END = op("Slice", "rows", _START, op("Shape", "ids"))
_NEXT = op("Add", "index", 1)


def _mean(divisor: Pattern) -> Pattern:
    last = Branches(op("Greater", _LEFT, 0), op("Div", _SUM, divisor), _SUM)
    return Branches(_IS_LAST, last, op("ReduceMean", _ROWS, 0))


_POOLED = (
    ("sum", _SUM),
    ("mean", _mean(op("Cast", _LEFT, to=_FLOAT))),
    ("mean", _mean(op("CastLike", _LEFT, "rows"))),  # where the exporter does not optimise
    ("max", op("ReduceMax", Branches(_IS_LAST, _TO_THE_END, _ROWS), 0)),
)


@dataclass(frozen=True)
class BagLoop:
    """Names of values of the graph around the loop.

    `table` `[rows, width]`, stored; `ids` `[N]`; `offsets` `[bags + 1]`, or `[bags]` without the
    number of ids at the end; `weights` `[N]` of the ids, empty where all are 1.
    """

    table: str
    ids: str
    offsets: str
    with_end: bool
    weights: str
    mode: str


def read_loop(join: Step, loop: Step, graph: Graph) -> BagLoop:
    """What a loop and the `ConcatFromSequence` after it compute; `DiffersError`: something else."""
    around = Scope(graph)
    found: list[DiffersError] = []
    agreed: list[int] = []
    for mode, pooled in _POOLED:
        match = Match({})
        try:
            _check_loop(match, join, loop, around, pooled)
            return _looked_up(match, around, mode)
        except DiffersError as error:
            found.append(error)
            agreed.append(match.agreed)
    raise found[agreed.index(max(agreed))]


def _check_loop(match: Match, join: Step, loop: Step, around: Scope, pooled: Pattern) -> None:
    body = loop.attributes.get("body")
    if not isinstance(body, Graph) or len(body.inputs) != 4 or len(loop.inputs) != 4:
        raise DiffersError("something else than a sequence and an index goes from turn to turn")
    if loop.inputs[0]:
        raise DiffersError(f"the number of turns is given, as {loop.inputs[0]!r}")
    at = loop.outputs.index(join.inputs[0])  # the exporter carries both in either order
    inside = Scope(body, around)
    match.bound["sequence"] = Value(inside, body.inputs[2 + at].name)
    match.bound["index"] = Value(inside, body.inputs[3 - at].name)
    match.check(around.find(join.outputs[0]), op("ConcatFromSequence", "joined", axis=0))
    match.check(around.find(loop.inputs[1]), op("Less", 0, "number of bags"))
    match.check(around.find(loop.inputs[2 + at]), op("SequenceEmpty"))
    match.check(around.find(loop.inputs[3 - at]), 0)
    match.check(inside.find(body.outputs[0]), op("Less", _NEXT, "number of bags"))
    match.check(inside.find(body.outputs[2 - at]), _NEXT)
    row = Branches(op("Equal", _START, _END), ZEROS, pooled)
    match.check(inside.find(body.outputs[1 + at]), op("SequenceInsert", "sequence", row))


def _looked_up(match: Match, around: Scope, mode: str) -> BagLoop:
    bags, given = match.bound["number of bags"], match.bound["offsets"]
    with_end = match.fits(bags, op("Sub", op("Size", "offsets"), 1))
    if not with_end:
        match.check(given, op("Concat", "starts", op("Shape", "ids"), axis=0))
        match.check(bags, op("Size", "starts"))
    read = op("Gather", "table", "ids")
    rounded = match.fits(match.bound["rows"], op("Cast", "exact rows", to=_FLOAT))
    rows = match.bound["exact rows" if rounded else "rows"]
    weighted = not match.fits(rows, read)
    if weighted:
        match.check(rows, op("Mul", read, op("Unsqueeze", "weights", 1)))
    ids = match.bound["ids"]
    counted = match.bound.get("counted ids", ids)
    if counted != ids:
        match.check(ids, op("Reshape", "counted ids", -1))
    table = match.bound["table"]
    if table.constant is None or table.constant.ndim != 2:
        raise DiffersError(f"{table} stands where a stored table is expected")
    if rounded and table.constant.dtype != torch.float32:
        raise DiffersError(f"rows of {table.constant.dtype} are pooled as float32")
    if match.widths != {table.constant.shape[1]}:
        raise DiffersError(f"bags without ids are not rows of {table.constant.shape[1]} zeros")
    plain = not weighted or _all_ones(match)
    names = {
        "table": table,
        "ids": counted if mode == "mean" else ids,
        "offsets": given if with_end else match.bound["starts"],
        **({} if plain else {"weights": match.bound["weights"]}),
    }
    for value in names.values():
        if value.scope is not around:
            raise DiffersError(f"{value} is computed anew in each turn")
    return BagLoop(
        table.name,
        names["ids"].name,
        names["offsets"].name,
        with_end,
        "" if plain else names["weights"].name,
        mode,
    )


def _all_ones(match: Match) -> bool:
    weights, ids = match.bound["weights"], match.bound["ids"]
    if match.fits(weights, op("CastLike", "plain weights", "table")):
        weights = match.bound["plain weights"]
    if match.fits(weights, op("Expand", 1, op("Shape", "ids"))):
        return True
    return match.fits(ids, op("Reshape", "given ids", -1)) and match.fits(
        weights, op("Expand", 1, op("Shape", "given ids"))
    )
