"""Which columns of an input the ids of a lookup are, however they were taken out of it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

# Operators that give all elements of their argument, in another shape.
RESHAPES = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
    aten.flatten.using_ints,
    aten.expand.default,
    aten.repeat.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
}
# Operators that give their argument as it is, in a memory or an integer type of its own.
COPIES = {
    aten._to_copy.default,
    aten.to.dtype,
    aten.clone.default,
    aten.contiguous.default,
}
# Operators that give elements of their first argument, by where these are and not by what they are.
TAKES = {
    *RESHAPES,
    aten.select.int,
    aten.slice.Tensor,
    aten.unbind.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.flip.default,
    aten.roll.default,
    operator.getitem,
}
_KEEPS = {*COPIES, aten.alias.default}
# Operators whose second result says where the elements of their first argument lie, in an order.
_ORDERS = {aten.sort.default, aten.sort.stable, aten.topk.default}
_ARGSORTS = {aten.argsort.default, aten.argsort.stable}
# Operators that put the elements of several together.
JOINS = {aten.stack.default, aten.cat.default}
_INPUT = "input:"
_Place = tuple[str, tuple[int, ...], int]  # an input, its row, and a place in the flat row
Column = tuple[str, int | None, int]  # an input, its column where it has some, the dimension


def columns_of(ids: fx.Node, rows: int) -> tuple[Column, ...] | None:
    """The inputs `[B]`, and columns of inputs `[B, C]` or `[B, ..., C, ...]`, that `ids` of a table
    of so many rows are taken from, or None.

    Found by taking the numbers of these places in the place of ids.
    """
    places: list[_Place] = []
    taken = _take(ids, rows, places)
    if not isinstance(taken, torch.Tensor):
        return None
    found = _columns(places, taken)
    return None if found is None else tuple(found)


def shifted_columns(ids: fx.Node, rows: int) -> dict[Column, tuple[int, int]]:
    """The columns, as of `columns_of`, that `ids` are taken from after the model has added numbers
    of its own, as it does where fields share a table, or subtracted them, as where it reads the
    last of so many places; and the least and the largest number that is added to each. None at all
    where anything else is done."""
    while ids.target in RESHAPES | _KEEPS and not changes_ids(ids, rows):
        ids = ids.args[0]  # type: ignore[assignment]
    if ids.target not in (aten.add.Tensor, aten.sub.Tensor) or len(ids.args) != 2 or ids.kwargs:
        return {}
    numbers = [_constant(argument) for argument in ids.args]
    given = [a for a, number in zip(ids.args, numbers, strict=True) if number is None]
    if len(given) != 1 or not isinstance(given[0], fx.Node) or not _holds(ids, rows):
        return {}
    places: list[_Place] = []
    taken = _take(given[0], rows, places)
    if not isinstance(taken, torch.Tensor):
        return {}
    (added,) = (number for number in numbers if number is not None)
    if ids.target is aten.sub.Tensor:
        if numbers[1] is None:
            return {}
        added = -added.long()
    by = added.long().expand(ids.meta["val"].shape)
    at = taken.expand(by.shape)
    if not by.numel():
        return {}
    least, most = (
        torch.zeros(len(places), dtype=torch.int64).scatter_reduce(
            0, at.flatten(), by.flatten(), which, include_self=False
        )
        for which in ("amin", "amax")
    )

    def alike(own: list[int]) -> bool:
        return all(bool((of[own] == of[own[0]]).all()) for of in (least, most))

    found = _columns(places, taken, alike) or {}
    return {column: (int(least[own[0]]), int(most[own[0]])) for column, own in found.items()}


def _columns(
    places: list[_Place], taken: torch.Tensor, alike: Callable[[list[int]], bool] = bool
) -> dict[Column, list[int]] | None:
    """What was taken, as whole columns, with the numbers of their places, which are to be alike;
    None where it is none."""
    found: dict[Column, list[int]] = {}
    numbers = torch.unique(taken).tolist()
    for name, row in dict.fromkeys((places[i][0], places[i][1]) for i in numbers):
        own = {places[i][2]: i for i in numbers if places[i][0] == name}
        if not row:
            found[name, None, 1] = list(own.values())
            continue
        flat = torch.arange(prod(row)).view(row)
        for axis in range(len(row)):
            parts = [part.flatten().tolist() for part in flat.unbind(axis)]
            whole = {
                c: [own[p] for p in part] for c, part in enumerate(parts) if own.keys() >= {*part}
            }
            if sum(map(len, whole.values())) == len(own) and all(map(alike, whole.values())):
                found |= {(name, c, axis + 1): numbers for c, numbers in whole.items()}
                break
        else:
            return None
    return found


def _constant(argument: object) -> torch.Tensor | None:
    """Whole numbers that are the same for every request."""
    if isinstance(argument, fx.Node):
        argument = argument.meta.get("constant")
    if isinstance(argument, int):
        argument = torch.tensor(argument)
    if not isinstance(argument, torch.Tensor) or argument.is_floating_point():
        return None
    return argument


def _take(node: fx.Node, rows: int, places: list[_Place]) -> object:
    """What `node` gives where each id is the number of its place, which is added to `places`."""
    if node.op == "placeholder":
        return _numbers(node, places)
    if (columns := _named_columns(node)) is not None:
        taken = _take(node.args[0], rows, places)  # type: ignore[arg-type]
        return node.target(taken, *columns) if isinstance(taken, torch.Tensor) else None  # type: ignore[operator]
    if picks_rows(node):
        return _picked(node, rows, places)
    if node.target not in TAKES | _KEEPS | JOINS or changes_ids(node, rows):
        return None
    given = node.args[0]
    before = [given] if isinstance(given, fx.Node) else given
    if not isinstance(before, (list, tuple)):
        return None
    taken = [_take(b, rows, places) if isinstance(b, fx.Node) else None for b in before]
    if not taken or any(t is None for t in taken):
        return None
    if node.target in _KEEPS:
        return taken[0]
    view = node.target in (aten.view.default, aten._unsafe_view.default)
    function = aten.reshape.default if view else node.target  # a marker's memory is another's
    first = taken if node.target in JOINS else taken[0]
    return function(first, *node.args[1:], **node.kwargs)  # type: ignore[operator]


def _named_columns(node: fx.Node) -> tuple[Any, ...] | None:
    """What an operator picks elements by, if these are the same ones of every row."""
    if node.target is aten.index_select.default:
        at = _constant(node.args[2])
        return None if at is None or node.args[1] == 0 else (node.args[1], at)
    if node.target is not aten.index.Tensor:
        return None
    index: Any = node.args[1]
    named = [None if at is None else _constant(at) for at in index]
    if index[0] is not None or [at is None for at in named] != [at is None for at in index]:
        return None
    return (named,)


def _picked(node: fx.Node, rows: int, places: list[_Place]) -> torch.Tensor | None:
    """Of rows that are alike, as many as are picked."""
    source = node.args[0]
    taken = _take(source, rows, places) if isinstance(source, fx.Node) else None
    if not isinstance(taken, torch.Tensor) or not bool((taken == taken[:1]).all()):
        return None
    picked = node.meta["val"].shape
    above = [1] * (len(picked) - taken.ndim)  # rows that a matrix names
    return taken[0].view(*above, 1, *taken.shape[1:]).expand(picked)


def _numbers(node: fx.Node, places: list[_Place]) -> torch.Tensor | None:
    name, (batch, *row) = str(node.target), node.meta["val"].shape
    if not name.startswith(_INPUT):
        return None
    name, count = name.removeprefix(_INPUT), prod(row)
    begin = next((i for i, place in enumerate(places) if place[0] == name), len(places))
    if begin == len(places):  # and not one that is taken from twice
        places += [(name, tuple(row), place) for place in range(count)]
    return torch.arange(begin, begin + count).view(row).expand(batch, *row)


def changes_ids(node: fx.Node, rows: int) -> bool:
    """Whether a copy in another type makes ids of a table of so many rows ids that it has not:
    negative ones, as int8 makes of 200, or the next larger ones, as float16 of 2,049."""
    value = node.meta.get("val")
    if node.target not in COPIES or not isinstance(value, torch.Tensor):
        return False
    if value.is_complex():
        return True
    if value.dtype.is_signed and not value.is_floating_point():
        return rows - 1 > torch.iinfo(value.dtype).max
    return float(torch.tensor(rows - 1).to(value.dtype)) >= rows


def picks_rows(node: fx.Node) -> bool:
    """Whether a node is rows of its first argument, which another tensor names: those of a user,
    or of candidates that are left."""
    if node.target is aten.index_select.default:
        return bool(node.args[1] == 0)
    if node.target is not aten.index.Tensor:
        return False
    index = node.args[1]
    picked = index[0] if isinstance(index, (list, tuple)) and len(index) == 1 else None
    return isinstance(picked, fx.Node) and picked.meta["val"].dtype != torch.bool


def never_beyond(ids: fx.Node, rows: int) -> bool:
    """Whether the model computes ids that a table of so many rows has, whatever the request of this
    bucket."""
    while _holds(ids, rows):
        places = _places(ids)
        if places is not None:
            return places <= rows
        if not _passes(ids):
            break
        ids = ids.args[0]  # type: ignore[assignment]
    else:
        return False
    if ids.target is aten.remainder.Scalar:
        return isinstance(ids.args[1], int) and 0 < ids.args[1] <= rows
    if ids.target is aten.clamp.default:
        low, high = (*ids.args[1:], None, None)[:2]
        return isinstance(low, int) and isinstance(high, int) and 0 <= low <= high < rows
    return False


def _holds(ids: fx.Node, rows: int) -> bool:
    """Whether a value is of integers that no id of so many rows is too large for."""
    value = ids.meta.get("val")
    if not isinstance(value, torch.Tensor):  # several, of which only one are ids
        return ids.target in TAKES
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return whole and torch.iinfo(value.dtype).max >= rows - 1


def _passes(node: fx.Node) -> bool:
    """Whether a node gives some or all of its argument's ids unchanged."""
    known = node.target in TAKES | _KEEPS or picks_rows(node)
    return node.op == "call_function" and known and isinstance(node.args[0], fx.Node)


def _places(node: fx.Node) -> int | None:
    """How many places there are, where a node says in which of them elements lie: `argsort` does,
    and the second result of `topk`."""
    order: Any = node
    if node.target is operator.getitem and node.args[1] == 1:
        order = node.args[0]
    if order.target not in (_ORDERS if order is not node else _ARGSORTS):
        return None
    at = [argument.name for argument in order.target._schema.arguments].index("dim")
    dim = order.args[at] if len(order.args) > at else order.kwargs.get("dim", -1)
    shape = order.args[0].meta["val"].shape
    return int(shape[dim]) if shape else 1
