"""Find the table lookups of a program, and the inputs, columns and bounds behind their ids."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx

from recreplay.capture.id_columns import (
    COPIES,
    RESHAPES,
    Column,
    changes_ids,
    columns_of,
    never_beyond,
    picks_rows,
    shifted_columns,
)
from recreplay.capture.jagged_axis import bag_arguments
from recreplay.capture.program import Program
from recreplay.capture.views import base, slice_arguments
from recreplay.runtime.spec import USER_INDEX, IdBound

aten = torch.ops.aten
Pooling = Literal["none", "sum", "mean"]
Bags = Literal["regular", "jagged"]

# Operators that pass ids on unchanged: each id of the output is an id of the input.
_MOVES = RESHAPES | COPIES
# Operators that go by ids along one dimension of their first argument.
_ALONG = {
    aten.index_select.default,
    aten.gather.default,
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter.reduce,
    aten.scatter.value_reduce,
    aten.scatter_add.default,
    aten.scatter_reduce.two,
    aten.index_add.default,
    aten.index_copy.default,
    aten.index_fill.int_Scalar,
    aten.index_reduce.default,
}


@dataclass(frozen=True)
class Lookup:
    """One table read. `ids` holds one id per looked-up row, in order; `length` ids make one output
    row."""

    node: fx.Node  # the operator that reads the table
    output: fx.Node  # the pooled or gathered rows
    weight: str
    dim: int
    rows: int
    ids: fx.Node
    pooling: Pooling
    length: int
    stackable: bool
    jagged: bool = False  # stackable too, but by where each bag ends and not by one length
    bags: Bags | None = None  # how its ids divide, where a grouped lookup can take it
    scales: fx.Node | None = None  # what each looked-up row is multiplied by, if anything


@dataclass(frozen=True)
class Origin:
    """The input that ids come from; `column` if they are one column of it, in dimension `axis`.
    `added` are the least and the largest number that the model adds to them."""

    input: str
    column: int | None
    added: tuple[int, int] = (0, 0)
    axis: int = 1

    @property
    def place(self) -> Column:
        return self.input, self.column, self.axis


def find_lookups(program: Program) -> list[Lookup]:
    """All reads of a weight by ids, in program order."""
    found: list[Lookup] = []
    for node in program.graph.nodes:
        if node.target is aten.embedding.default:
            found.append(_embedding(node))
        elif node.target is aten.embedding_bag.padding_idx:
            found.append(_embedding_bag(program, node))
        elif node.target is aten.index.Tensor or node.target in _ALONG:
            found += _indexing(node)
        elif node.target is aten.one_hot.default:
            found.append(_one_hot(node))
    return found


def _is_weight(node: object) -> bool:
    return isinstance(node, fx.Node) and str(node.target).startswith("weight:")


def _table_name(node: fx.Node) -> str:
    return str(node.target).removeprefix("weight:") if _is_weight(node) else node.name


def _indexing(node: fx.Node) -> list[Lookup]:
    """`table[ids]`, `table[ids, more]` and the like: not stacked, but their ids are bounded like
    any others; of what the model computes, those that are a request's and torch does not wrap."""
    table = node.args[0]
    assert isinstance(table, fx.Node)
    shape, source = table.meta["val"].shape, base(table)
    weight = _is_weight(source)
    # A constant is called by what is in it, and zeros of as many rows as a bucket has otherwise in
    # each bucket.
    name = node.name if _is_constant(source) else _table_name(source)
    indices = _indices(node)
    if any(ids.meta["val"].dtype == torch.bool for _, ids in indices):
        return []
    wraps = node.target is aten.index.Tensor
    rows = [dim for dim, _ in indices] == [0]
    return [
        Lookup(node, node, name, 0, int(shape[dim]), ids, "none", 1, False)
        for dim, ids in indices
        if not _is_user_index(ids)  # checked against the users of the request
        and (rows or weight or (not wraps and _origins(node, ids, int(shape[dim]))))
    ]


def _one_hot(node: fx.Node) -> Lookup:
    """Looks up a row of the identity, of as many rows as there are classes."""
    ids = node.args[0]
    assert isinstance(ids, fx.Node)
    classes = int(node.meta["val"].shape[-1])
    return Lookup(node, node, node.name, classes, classes, ids, "none", 1, False)


def _indices(node: fx.Node) -> list[tuple[int, fx.Node]]:
    """The dimensions of its first argument that an operator goes by ids along, and these."""
    given: Any
    if node.target is aten.index.Tensor:
        given = enumerate(node.args[1])  # type: ignore[arg-type]
    else:
        dim, ids = node.args[1:3]
        given = [(dim % max(node.args[0].meta["val"].ndim, 1), ids)]  # type: ignore
    return [(dim, ids) for dim, ids in given if isinstance(ids, fx.Node)]


def _embedding(node: fx.Node) -> Lookup:
    table, ids = node.args[0], node.args[1]
    assert isinstance(table, fx.Node)
    assert isinstance(ids, fx.Node)
    weight, stackable = _table_name(table), _is_weight(table)
    rows, dim = table.meta["val"].shape
    # The padding index of `embedding` acts on gradients only.
    bags: Bags | None = "regular" if stackable else None
    pooled = _pooled_by(node)
    if pooled is not None:
        output, pooling = pooled
        length = int(ids.meta["val"].shape[1])
        return Lookup(node, output, weight, dim, rows, ids, pooling, length, stackable, bags=bags)
    return Lookup(node, node, weight, dim, rows, ids, "none", 1, stackable, bags=bags)


def _pooled_by(node: fx.Node) -> tuple[fx.Node, Pooling] | None:
    """The sum or mean over the bag dimension, where it is the only reader of `embedding`, and bags
    of such rows can be looked up: of floats, and not of none."""
    rows = node.meta["val"]
    if len(node.users) != 1 or rows.ndim != 3 or not rows.shape[1] or not rows.is_floating_point():
        return None
    user = next(iter(node.users))
    if user.target not in (aten.sum.dim_IntList, aten.mean.dim):
        return None
    dims = user.args[1]
    keepdim = len(user.args) > 2 and bool(user.args[2])
    if dims not in ([1], [-2]) or keepdim or user.kwargs:
        return None
    return user, "sum" if user.target is aten.sum.dim_IntList else "mean"


def _embedding_bag(program: Program, node: fx.Node) -> Lookup:
    arguments = bag_arguments(node)
    table, ids, offsets = (arguments[k] for k in ("weight", "indices", "offsets"))
    assert isinstance(table, fx.Node)
    assert isinstance(ids, fx.Node)
    assert isinstance(offsets, fx.Node)
    rows, dim = table.meta["val"].shape
    readers = [u for u in node.users if u.target is operator.getitem and u.args[1] == 0]
    count, bags = int(ids.meta["val"].shape[0]), int(offsets.meta["val"].shape[0])
    regular = False
    constant = str(offsets.target).removeprefix("const:")
    if constant in program.constants and bags and count % bags == 0:
        step = count // bags
        regular = bool(torch.equal(program.constants[constant], torch.arange(0, count, step)))
    mode = arguments.get("mode", 0)
    scales = arguments.get("per_sample_weights")
    usual = (
        _is_weight(table)
        and arguments.get("padding_idx") is None
        and len(readers) == len(node.users) == 1
    )
    plain = usual and regular and mode in (0, 1) and not arguments.get("include_last_offset", False)
    jagged = usual and "jagged" in node.meta
    divided: Bags | None = "regular" if plain else "jagged" if jagged and mode in (0, 1) else None
    output = readers[0] if readers else node
    pooling: Pooling = "mean" if mode == 1 else "sum"
    length = count // bags if bags else 0
    name = _table_name(table)
    alone = scales is None
    return Lookup(
        *(node, output, name, dim, rows, ids, pooling, length),
        stackable=plain and alone,
        jagged=jagged and alone,
        bags=divided,
        scales=scales,
    )


def origin(ids: fx.Node, rows: int) -> Origin | None:
    """Walk back from ids of a table to the input they are, or None where arithmetic made them."""
    column: int | None = None
    node = ids
    while node.op == "call_function":
        before = node.args[0]
        if not isinstance(before, fx.Node):
            return None
        if node.target is aten.select.int:
            dim, index = node.args[1], node.args[2]
            if not _is_column_of_input(before, dim) or column is not None:
                return None
            column = int(index) % int(before.meta["val"].shape[1])  # type: ignore[arg-type]
        elif node.target is aten.slice.Tensor:
            dim, start, _, _ = slice_arguments(node)
            shape = before.meta["val"].shape
            width = int(node.meta["val"].shape[int(dim)])
            if width == shape[int(dim)]:
                pass  # the whole of it
            elif _is_column_of_input(before, dim) and width == 1 and column is None:
                column = int(start or 0) % int(shape[1])
            else:
                return None
        elif node.target not in _MOVES and not picks_rows(node):
            return None
        if changes_ids(node, rows):
            return None
        node = before
    target = str(node.target)
    return Origin(target.removeprefix("input:"), column) if target.startswith("input:") else None


def _is_user_index(node: object) -> bool:
    return isinstance(node, fx.Node) and node.target == f"input:{USER_INDEX}"


def _is_column_of_input(node: fx.Node, dim: object) -> bool:
    # Rows that are picked by a matrix, or a single one, have the columns in another dimension.
    while node.meta["val"].ndim == 2:
        if node.op == "placeholder":
            return str(node.target).startswith("input:") and dim in (1, -1)
        if node.target is not aten._to_copy.default and not picks_rows(node):
            return False
        node = node.args[0]  # type: ignore[assignment]
    return False


def id_bounds(program: Program, largest: Program | None = None) -> tuple[list[IdBound], list[str]]:
    """What each request's ids are checked against, and the tables whose ids no input holds as they
    are.

    `program` is of the smallest bucket and `largest` of the largest, which says what grows with
    the bucket: places among the rows of a request, and these rows themselves where they are looked
    up. What grows bounds no ids, and is within its table everywhere if it is at both ends. Nor do
    ids to which another number is added in another bucket.
    """
    largest = largest or program
    here, last = (
        [(k, _origins(k.node, k.ids, k.rows)) for k in find_lookups(p)] for p in (program, largest)
    )
    there = {(lookup.weight, lookup.rows) for lookup, _ in last}
    added = _added(here), _added(last)

    def certain(lookup: Lookup, found: list[Origin]) -> list[Origin]:
        keys = [(lookup.weight, at.place) for at in found if any(at.added)]
        return found if all(added[0].get(k) == added[1].get(k) for k in keys) else []

    bounds: dict[Column, IdBound] = {}
    unchecked = []
    for lookup, found in here:
        if _is_constant(lookup.ids):
            continue  # the same rows whatever the request
        known = certain(lookup, found)
        grows = (lookup.weight, lookup.rows) not in there
        if (grows or not known) and not never_beyond(lookup.ids, lookup.rows):
            unchecked.append(lookup.weight)
        for at in () if grows else known:
            key = at.place
            bound = _bound(lookup, at)
            tighter = min(bound, bounds.get(key, bound), key=lambda b: b.rows)
            least = max(bound.least, bounds[key].least if key in bounds else 0)
            bounds[key] = replace(tighter, least=least)
    unchecked += [
        k.weight
        for k, found in last
        if not (_is_constant(k.ids) or certain(k, found) or never_beyond(k.ids, k.rows))
    ]
    return list(bounds.values()), list(dict.fromkeys(unchecked))


def _bound(lookup: Lookup, at: Origin) -> IdBound:
    least, most = at.added
    table = f"{lookup.weight}[{most}:]" if most > 0 else lookup.weight
    return IdBound(at.input, at.column, lookup.rows - most, table, max(0, -least), at.axis)


def stays_in_table(lookup: Lookup) -> bool:
    """Whether no request gets a lookup to read beyond its table: where tables lie end to end, what
    is beyond one is another. Of ids to which the model adds numbers, one bucket says too little."""
    ids, found = lookup.ids, _origins(lookup.node, lookup.ids, lookup.rows)
    as_given = bool(found) and not any(any(at.added) for at in found)
    return _is_constant(ids) or as_given or never_beyond(ids, lookup.rows)


def _added(
    lookups: list[tuple[Lookup, list[Origin]]],
) -> dict[tuple[str, Column], tuple[int, int]]:
    """The least and the largest number that is added to the ids of a table from each place."""
    both: dict[tuple[str, Column], tuple[int, int]] = {}
    for lookup, found in lookups:
        for at in found:
            key = (lookup.weight, at.place)
            least, most = both.get(key, at.added)
            both[key] = min(least, at.added[0]), max(most, at.added[1])
    return both


def _is_constant(ids: fx.Node) -> bool:
    return str(base(ids).target).startswith("const:")


def _origins(reader: fx.Node, ids: fx.Node, rows: int) -> list[Origin]:
    """The columns of inputs that ids of a table of so many rows are, all of which have to be
    checked."""
    at = origin(ids, rows)
    if at is not None:
        return [at]
    places = columns_of(ids, rows)
    if places is not None:
        return [Origin(name, column, axis=axis) for name, column, axis in places]
    shifted = shifted_columns(ids, rows)
    wraps = reader.target is aten.index.Tensor  # -1 is the last row
    if any(most >= rows or (wraps and least < 0) for least, most in shifted.values()):
        return []
    return [Origin(name, column, added, axis) for (name, column, axis), added in shifted.items()]
