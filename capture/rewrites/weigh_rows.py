"""Rewrite: looked-up float32 rows `[B, L, dim]` that a model multiplies by a factor each (a mask of
what is padding, a weight) and adds up are bags of a function of ours, as `pool_rows` makes of those
without.

Short bags, and rows of tables that a near cache holds, are left to the compiler's loops, which take
many features at once and never wait: 26 bags of 5 x 16 floats of 128 KB tables take 9 us so and 19
by the function at batch 1, 27 and 67 at 128; 8 bags of 20 x 32 of 13 MB tables 302 and 161 at 128
(one Zen 5 core). Torch's own bags with weights or a padding index are none of these.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import fx

from recreplay.capture.contraction import terms_of
from recreplay.capture.jagged_axis import bag_arguments
from recreplay.capture.program import Program
from recreplay.capture.rewrites.lower_tables import bag_lengths
from recreplay.runtime.aten import WEIGHTED_BAGS, resolve

aten = torch.ops.aten
# Where the factors of a row lie: `[B, L, 1]`, or what broadcasts to it, as numbers, or as what says
# which rows count and which do not; `[B, 1, L]`; `[B, L]`.
_Form = Literal["column", "counts", "counts not", "row", "ids"]
_LONG = 16  # rows of a bag
_LARGE = 1 << 20  # bytes of a table
_PRODUCTS = (aten.matmul.default, aten.bmm.default)


def weigh_rows(program: Program, lowered: Collection[str] = ()) -> None:
    """Rewrite `program` in place, but for tables that are stored `lowered`."""
    for node in list(program.graph.find_nodes(op="call_function", target=aten.embedding.default)):
        known = _is_table(node.args[0], lowered) and _is_worth_it(node)
        found = _factors(node) if known else None
        if found is None:
            continue
        factors, form, added, output = found
        with program.graph.inserting_before(output):
            by_id = _by_id(program, node.args[1], factors, form)
            if added.target is aten.mean.dim:
                by_id = program.call(aten.div.Tensor, by_id, int(by_id.meta["val"].shape[1]))
            masks = form in ("counts", "counts not")
            rows = _pool(program, node.args[0], node.args[1], by_id, masks)
            if output.meta["val"].ndim == 3:
                rows = program.call(aten.unsqueeze.default, rows, 1)
        program.replace(output, rows)
    bags = program.graph.find_nodes(op="call_function", target=aten.embedding_bag.padding_idx)
    for node in list(bags):
        _bag(program, node, lowered)
    program.prune()


def _is_table(node: Any, lowered: Collection[str]) -> bool:
    kind, _, name = str(node.target).partition(":")
    return kind == "weight" and name not in lowered and node.meta["val"].dtype == torch.float32


def _is_worth_it(rows: fx.Node) -> bool:
    value, table = rows.meta["val"], rows.args[0].meta["val"]  # type: ignore[union-attr]
    return bool(value.ndim == 3 and value.shape[1] >= _LONG and table.nbytes >= _LARGE)


def _pool(program: Program, table: Any, ids: Any, factors: fx.Node, masks: bool) -> fx.Node:
    """Bags of the factors' `[bags, length]`; `masks`: which say what rows are left out."""
    length = int(factors.meta["val"].shape[1])
    return program.call(resolve(WEIGHTED_BAGS), table, ids, factors, length, masks)


def _factors(rows: fx.Node) -> tuple[fx.Node, _Form, fx.Node, fx.Node] | None:
    """What rows are multiplied by, its form, what adds up and what has the sums, if sums are all
    that is read of them."""
    if len(rows.users) != 1:
        return None
    (user,) = rows.users
    value = user.meta["val"]
    if user.kwargs or not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return None
    product = _product(rows, user)
    if product is not None:
        alike = user.meta["val"].shape[0] == rows.meta["val"].shape[0]
        return (*product, user, user) if alike else None
    scaled = _scaled(rows, user)
    if scaled is None or user.meta["val"].shape != rows.meta["val"].shape or len(user.users) != 1:
        return None
    (added,) = user.users
    if added.target not in (aten.sum.dim_IntList, aten.mean.dim) or added.kwargs:
        return None
    if added.args[1] not in ([1], [-2]) or any(added.args[2:]):
        return None
    factors, form = scaled
    while factors.target is aten.expand.default and factors.meta["val"].shape[-1] != 1:
        factors = factors.args[0]  # type: ignore[assignment]
    value = factors.meta["val"]
    if not value.ndim or value.shape[-1] != 1 or value.dtype.is_complex:
        return None
    return factors, form, added, added


def _product(rows: fx.Node, user: fx.Node) -> tuple[fx.Node, _Form] | None:
    """Of a product of matrices that adds rows up."""
    if user.target in _PRODUCTS and user.args[1] is rows:
        factors: Any = user.args[0]
        value = factors.meta["val"]
        return (factors, "row") if value.ndim == 3 and value.shape[1] == 1 else None
    if user.target is aten.einsum.default:
        found, operands = terms_of(str(user.args[0])), list(user.args[1])  # type: ignore[arg-type]
        if found is None or len(operands) != 2:
            return None
        at = operands.index(rows)
        of_rows, axes = found[0][at], found[0][1 - at]
        plain = len(set(of_rows)) == 3 and found[1] == of_rows[0] + of_rows[2]
        return (operands[1 - at], "ids") if axes == of_rows[:2] and plain else None
    return None


def _scaled(rows: fx.Node, user: fx.Node) -> tuple[fx.Node, _Form] | None:
    """Of what leaves rows in their places."""
    given: tuple[Any, ...] = user.args
    if user.target is aten.mul.Tensor:
        others = [a for a in given if isinstance(a, fx.Node) and a is not rows]
        return (others[0], "column") if len(others) == 1 else None
    if user.target is aten.masked_fill.Scalar and given[0] is rows and given[2] == 0:
        return given[1], "counts not"
    if user.target is aten.where.ScalarOther and given[1] is rows and given[2] == 0:
        return given[0], "counts"
    if user.target is aten.where.ScalarSelf and given[2] is rows and given[1] == 0:
        return given[0], "counts not"
    return None


def _by_id(program: Program, ids: Any, factors: fx.Node, form: _Form) -> fx.Node:
    """Factors float32 `[B, L]`."""
    if form == "counts not":
        factors = program.call(aten.logical_not.default, factors)
    if factors.meta["val"].dtype != torch.float32:
        factors = program.call(aten._to_copy.default, factors, dtype=torch.float32)
    if form != "ids":
        factors = program.call(aten.squeeze.dims, factors, [1 if form == "row" else -1])
    shape = list(ids.meta["val"].shape)
    if list(factors.meta["val"].shape) != shape:
        factors = program.call(aten.expand.default, factors, shape)
    return factors


def _bag(program: Program, bag: fx.Node, lowered: Collection[str]) -> None:
    """Bags of one length that have weights, or an id that does not count."""
    arguments = bag_arguments(bag)
    table, ids = arguments["weight"], arguments["indices"]
    weights, padding = arguments.get("per_sample_weights"), arguments.get("padding_idx")
    mode, padded = arguments.get("mode", 0), padding is not None
    lengths = bag_lengths(program, arguments["offsets"], len(ids.meta["val"]))
    if (
        not _is_table(table, lowered)
        or (weights is None) != padded
        or mode not in (0, 1)
        or lengths is None
        or len(set(lengths)) != 1
        or arguments.get("include_last_offset", False)
        or not all(u.target is operator.getitem and u.args[1] == 0 for u in bag.users)
    ):
        return
    call, shape = program.call, [len(lengths), lengths[0]]
    with program.graph.inserting_before(bag):
        ids = call(aten.view.default, ids, shape)
        if padded:
            weights = call(aten.ne.Scalar, ids, padding)
            weights = call(aten._to_copy.default, weights, dtype=torch.float32)
        else:
            weights = call(aten.view.default, weights, shape)
        pooled = _pool(program, table, ids, weights, padded)
        if mode == 1:
            count = call(aten.clamp.default, call(aten.sum.dim_IntList, weights, [1], True), 1.0)
            pooled = call(aten.div.Tensor, pooled, count)
    for first in list(bag.users):
        program.replace(first, pooled)
