"""Rewrite: lookups read tables that are stored as float16 or as int8 rows, and pool in float32.

Bags of float16 stay bags: torch adds up in float32 and rounds the sum to float16 once, which is
brought to float32. On one AVX-512 core 66,560 rows of 32 take 200 us so, 472 us from a float32
table, and 12,550 us where they are gathered first. Rows of int8, and weighted ones, are gathered
and brought to float32 by plain operators, which inductor fuses into the loop that pools: a cast or
one product and one sum with the row's own scale and offset. What these are is said in
`recreplay.runtime.lowered`.

It goes last: the other rewrites see float32 tables as the model has them.
"""

from __future__ import annotations

import operator
from collections.abc import Set as AbstractSet
from itertools import groupby

import torch
from torch import fx

from recreplay.capture.jagged_axis import bag_arguments
from recreplay.capture.specialise import Program
from recreplay.runtime.lowered import INT8, SCALES, Stored, value_dtype

aten = torch.ops.aten


def lower_tables(program: Program, stored: AbstractSet[str], kind: Stored) -> None:
    """Rewrite `program` in place. `stored`: tables, and stacks of them, stored as `kind`."""
    for node in list(program.graph.nodes):
        if node.target not in (aten.embedding.default, aten.embedding_bag.padding_idx):
            continue
        table, ids = node.args[:2]
        assert isinstance(table, fx.Node)
        assert isinstance(ids, fx.Node)
        kept, _, name = str(table.target).partition(":")
        if kept != "weight" or name not in stored:
            continue
        if node.target is aten.embedding.default:
            program.replace(node, _read(program, table, ids, kind))
            continue
        if kind == INT8 or bag_arguments(node).get("per_sample_weights") is not None:
            pooled = _pool(program, node, _read(program, table, ids, kind))
        else:
            pooled = _pool_as_stored(program, node, table, kind)
        for first in list(node.users):  # of what the operator gives, nothing else is read
            program.replace(first, pooled)
    program.sort()
    program.prune()


def _retype(program: Program, table: fx.Node, kind: Stored) -> None:
    table.meta["val"] = program.fake(table.meta["val"].shape, value_dtype(kind))


def _pool_as_stored(program: Program, bag: fx.Node, table: fx.Node, kind: Stored) -> fx.Node:
    _retype(program, table, kind)
    made = program.call(aten.embedding_bag.padding_idx, *bag.args, **bag.kwargs)
    return program.call(aten.to.dtype, program.call(operator.getitem, made, 0), torch.float32)


def _read(program: Program, table: fx.Node, ids: fx.Node, kind: Stored) -> fx.Node:
    """The float32 rows `[*ids, dim]`."""
    _retype(program, table, kind)
    shape = table.meta["val"].shape
    if kind != INT8:
        rows = program.call(aten.embedding.default, table, ids)
        return program.call(aten.to.dtype, rows, torch.float32)
    name = SCALES + str(table.target).removeprefix("weight:")
    scales = program.source("weight", name, program.fake((shape[0], 2), torch.float32))
    codes = program.call(aten.embedding.default, table, ids)
    pairs = program.call(aten.embedding.default, scales, ids)
    scale = program.call(aten.slice.Tensor, pairs, -1, 0, 1)
    offset = program.call(aten.slice.Tensor, pairs, -1, 1, 2)
    wide = program.call(aten.to.dtype, codes, torch.float32)
    scaled = program.call(aten.mul.Tensor, wide, scale)
    return program.call(aten.add.Tensor, scaled, offset)


def _pool(program: Program, bag: fx.Node, rows: fx.Node) -> fx.Node:
    """What `embedding_bag` makes of its gathered rows `[ids, dim]`."""
    arguments = bag_arguments(bag)
    lengths = _lengths(program, arguments["offsets"], len(rows.meta["val"]))
    if lengths is None or arguments.get("include_last_offset", False):
        return _pool_jagged(program, rows, bag)
    reduce = aten.mean.dim if arguments.get("mode", 0) == 1 else aten.sum.dim_IntList
    dim = int(rows.meta["val"].shape[1])
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    pooled, at = [], 0
    for length, bags in runs:
        end = at + length * bags
        part = rows if len(runs) == 1 else program.call(aten.slice.Tensor, rows, 0, at, end)
        bagged = program.call(aten.view.default, part, [bags, length, dim])
        pooled.append(program.call(reduce, bagged, [1]))
        at = end
    return pooled[0] if len(pooled) == 1 else program.call(aten.cat.default, pooled)


def _lengths(program: Program, offsets: fx.Node, total: int) -> list[int] | None:
    """The ids of each bag, where they are known now and no bag is empty."""
    known = program.constants.get(str(offsets.target).removeprefix("const:"))
    if known is None:
        return None
    ends = torch.cat([known[1:], torch.tensor([total], dtype=known.dtype)])
    lengths: list[int] = (ends - known).tolist()
    return lengths if all(length > 0 for length in lengths) else None


def _pool_jagged(program: Program, rows: fx.Node, bag: fx.Node) -> fx.Node:
    """The rows as a table of their own, of which each bag looks up those that follow one another:
    the one operator that torch has for this."""
    arguments = bag_arguments(bag)
    dtype = arguments["offsets"].meta["val"].dtype
    places = program.constant(torch.arange(len(rows.meta["val"]), dtype=dtype))
    again = {**arguments, "weight": rows, "indices": places}
    made = program.call(aten.embedding_bag.padding_idx, *again.values())
    return program.call(operator.getitem, made, 0)
