"""Rewrite: ids come as int32 where the rows of their tables bound them, whatever a request sends.

A bucket of many ids is mostly ids: 26 features of 20 are 4 KB a row, of which half are zeros. As
int32 they take half of the link to a GPU, and filling 4,096 such rows takes two thirds of the time
(1.3 ms in place of 2.0, one Zen 3 core), since half as much is written. Requests are as before: the
runtime compares ids before it narrows them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from math import prod
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from recreplay.capture.id_columns import JOINS, TAKES, picks_rows
from recreplay.capture.lookups import find_lookups
from recreplay.capture.program import Program
from recreplay.capture.rewrites.lookup_ids import in_dtype
from recreplay.runtime.spec import IdBound, InputSpec

aten = torch.ops.aten
_MOST = torch.iinfo(torch.int32).max
# Operators that give ids of their first argument, in the dtype that it has.
_MOVES = TAKES | JOINS | {aten.clone.default, aten.contiguous.default}


# How many ids a row the inputs of a model must have in the mean. One id gained nothing on a CPU,
# and borrowed requests would be copied for it; 80 to 120 gained 7 to 13 % of whole requests.
_LEAST = {"cpu": 4, "cuda": 1}


def narrowed(inputs: Sequence[InputSpec], bounds: Sequence[IdBound], device: str) -> frozenset[str]:
    """The int64 inputs whose every value is checked to be an id that int32 holds, or none of them
    where that would gain nothing on this kind of device: lookups that are stacked want one
    dtype."""
    columns: dict[str, dict[int, set[int | None]]] = defaultdict(lambda: defaultdict(set))
    for bound in bounds:
        if bound.rows - 1 <= _MOST:
            columns[bound.input][bound.axis].add(bound.column)
    found = {
        spec.name: spec.capacity if spec.kind == "values" else prod(spec.row)
        for spec in inputs
        if spec.dtype == "int64"
        and spec.kind in ("rows", "values")
        and any(
            None in known or known.issuperset(range(spec.row[axis - 1]))
            for axis, known in columns[spec.name].items()
        )
    }
    worth = sum(found.values()) >= _LEAST[device] * len(found)
    return frozenset(found if worth else ())


def narrow_ids(program: Program, names: Collection[str]) -> None:
    """Rewrite `program` in place: the inputs `names` come as int32.

    Lookups read them so; whatever else does reads them as the model has them.
    """
    narrow: dict[fx.Node, fx.Node | None] = {}  # ids -> the same as int32
    first = next(n for n in program.graph.nodes if n.op != "placeholder")
    for name in sorted(names):  # in the same order in every process, so that code is the same
        for node in program.graph.find_nodes(op="placeholder", target=f"input:{name}"):
            readers = list(node.users)
            node.meta["val"] = program.fake(node.meta["val"].shape, torch.int32)
            with program.graph.inserting_before(first):
                wide = program.call(aten.to.dtype, node, torch.int64)
            for reader in readers:
                reader.replace_input_with(node, wide)
            narrow[wide] = node
    for node in [lookup.node for lookup in find_lookups(program)]:
        if node.target is aten.embedding.default:
            _read(program, node, _ids(program, node.args[1], narrow))
        elif node.target is aten.embedding_bag.padding_idx:
            ids = _ids(program, node.args[1], narrow)
            _read(program, node, ids, None if ids is None else _ends(program, node, narrow))
    program.prune()


def _read(program: Program, lookup: fx.Node, *given: fx.Node | None) -> None:
    """Have a lookup read these in place of its ids and what divides them."""
    if None in given:
        return
    lookup.args = (lookup.args[0], *given, *lookup.args[1 + len(given) :])
    with program.fake_mode:
        args = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (lookup.args, lookup.kwargs))
        lookup.meta["val"] = lookup.target(*args[0], **args[1])  # type: ignore[operator]


def _ids(program: Program, ids: Any, narrow: dict[fx.Node, fx.Node | None]) -> fx.Node | None:
    """The same ids as int32, moved in the same way, or None if something else made them."""
    if not isinstance(ids, fx.Node) or ids in narrow:
        return narrow.get(ids)
    narrow[ids] = None
    if ids.target not in _MOVES and not picks_rows(ids):
        return None
    given = ids.args[0]
    before = [
        _ids(program, n, narrow) for n in (given if isinstance(given, (list, tuple)) else [given])
    ]
    if None in before:
        return None
    first = before if ids.target in JOINS else before[0]
    with program.graph.inserting_before(ids):
        moved = program.call(ids.target, first, *ids.args[1:], **ids.kwargs)  # type: ignore[arg-type]
    moved.meta = {**ids.meta, "val": moved.meta["val"]}
    narrow[ids] = moved
    return moved


def _ends(program: Program, bag: fx.Node, narrow: dict[fx.Node, fx.Node | None]) -> fx.Node | None:
    """What divides the ids of a bag as int32: torch would convert the ids where the two differ."""
    ends = bag.args[2]
    assert isinstance(ends, fx.Node)
    if ends not in narrow:
        folded = program.constants.get(str(ends.target).removeprefix("const:"))
        if folded is not None:
            narrow[ends] = program.constant(folded.to(torch.int32))
        else:
            with program.graph.inserting_before(bag):
                narrow[ends] = in_dtype(program, ends, torch.int32)
    return narrow[ends]
