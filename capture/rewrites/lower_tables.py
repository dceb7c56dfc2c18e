"""Rewrite: lookups read tables that are stored as float16 or as int8 rows, and pool in float32.

Bags of float16 stay bags: torch adds up in float32 and rounds the sum to float16 once, which is
brought to float32. On one AVX-512 core 66,560 rows of 32 take 200 us so, 472 us from a float32
table, and 12,550 us where they are gathered first. Rows of int8 are pooled by our own `byte_bags`
in packages for the CPU. Elsewhere rows are gathered and brought to float32 by plain operators,
which inductor fuses into the loop that pools: one product and one sum with the row's own scale and
offset. What these are is said in `recreplay.runtime.lowered`.

It goes last: the other rewrites see float32 tables as the model has them.
"""

from __future__ import annotations

import operator
from collections.abc import Set as AbstractSet
from itertools import groupby

import torch
from torch import fx

from recreplay.capture.jagged_axis import bag_arguments
from recreplay.capture.program import Program
from recreplay.runtime.aten import BYTE_BAGS, resolve
from recreplay.runtime.lowered import INT8, SCALES, Stored, value_dtype

aten = torch.ops.aten


def lower_tables(
    program: Program, stored: AbstractSet[str], kind: Stored, pool_bytes: bool = False
) -> None:
    """Rewrite `program` in place. `stored`: tables, and stacks of them, stored as `kind`.

    `pool_bytes`: lookups of int8 rows are `byte_bags`.
    """
    own = pool_bytes and kind == INT8
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
            program.replace(node, _read(program, table, ids, kind, own))
            continue
        if kind == INT8:
            pooled = _pool(program, node, table, ids, kind, own)
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


def _read(program: Program, table: fx.Node, ids: fx.Node, kind: Stored, own: bool) -> fx.Node:
    """The float32 rows `[*ids, dim]`."""
    if own:
        rows = _byte_bags(program, table, ids, 1, False)
        shape = [*ids.meta["val"].shape, table.meta["val"].shape[1]]
        return rows if len(shape) == 2 else program.call(aten.view.default, rows, shape)
    _retype(program, table, kind)
    if kind != INT8:
        rows = program.call(aten.embedding.default, table, ids)
        return program.call(aten.to.dtype, rows, torch.float32)
    codes = program.call(aten.embedding.default, table, ids)
    pairs = program.call(aten.embedding.default, _scales(program, table), ids)
    scale = program.call(aten.slice.Tensor, pairs, -1, 0, 1)
    offset = program.call(aten.slice.Tensor, pairs, -1, 1, 2)
    wide = program.call(aten.to.dtype, codes, torch.float32)
    scaled = program.call(aten.mul.Tensor, wide, scale)
    return program.call(aten.add.Tensor, scaled, offset)


def _scales(program: Program, table: fx.Node) -> fx.Node:
    name = SCALES + str(table.target).removeprefix("weight:")
    rows = table.meta["val"].shape[0]
    return program.source("weight", name, program.fake((rows, 2), torch.float32))


def _byte_bags(program: Program, table: fx.Node, ids: fx.Node, length: int, mean: bool) -> fx.Node:
    _retype(program, table, INT8)
    scales = _scales(program, table)
    return program.call(resolve(BYTE_BAGS), table, scales, ids, length, mean)


def _pool(
    program: Program, bag: fx.Node, table: fx.Node, ids: fx.Node, kind: Stored, own: bool
) -> fx.Node:
    """What `embedding_bag` makes of the rows of its ids `[ids]`."""
    arguments = bag_arguments(bag)
    total, dim = len(ids.meta["val"]), int(table.meta["val"].shape[1])
    lengths = bag_lengths(program, arguments["offsets"], total)
    if lengths is None or arguments.get("include_last_offset", False):
        return _pool_jagged(program, _read(program, table, ids, kind, own), bag)
    mean = arguments.get("mode", 0) == 1
    reduce = aten.mean.dim if mean else aten.sum.dim_IntList
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    read = ids if own else _read(program, table, ids, kind, own)
    pooled, at = [], 0
    for length, bags in runs:
        end = at + length * bags
        part = read if len(runs) == 1 else program.call(aten.slice.Tensor, read, 0, at, end)
        at = end
        if own:
            pooled.append(_byte_bags(program, table, part, length, mean))
        else:
            bagged = program.call(aten.view.default, part, [bags, length, dim])
            pooled.append(program.call(reduce, bagged, [1]))
    return pooled[0] if len(pooled) == 1 else program.call(aten.cat.default, pooled)


def bag_lengths(program: Program, offsets: fx.Node, total: int) -> list[int] | None:
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
