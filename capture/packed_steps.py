"""Steps of a model's own over a packed sequence, as DIEN's attention in a GRU is written.

    for batch in batch_sizes:
        state = cell(items[begin : begin + batch], state[:batch])
        states[begin : begin + batch] = state
        begin += batch

`batch` is how many lists have an item at a place, and lists are in the order of their lengths.
Here all rows take all steps: what such a slice reads is all of them at that place, and what it
writes reaches the rows whose lists have an item there. What a longer list has no part in stays in
its own row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from recreplay.capture.freeze import tensors_in
from recreplay.capture.known_values import rows_are_alike
from recreplay.capture.rows_asked import calling_line
from recreplay.runtime.errors import UnsupportedModelError

# What `int(batch_sizes[0])` is, as the number of rows is none yet. Nothing else comes to it: it is
# no table's size, as one more than a power of two is.
_ROWS = 60_659
# What stands for a tensor that a model made of so many rows, or writes into place by place.
_instead: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
# What was written so far into all items, place by place.
_written: MutableMapping[Tensor, list[Tensor]] = WeakTensorKeyDictionary()
_lists: list[Lists] = []  # that the model has packed


class Lists:
    """What stands for `batch_sizes`: all rows have all places, and lists hold so many of them."""

    device = torch.device("cpu")

    def __init__(self, rows: Any, places: int, lengths: Tensor) -> None:
        self.rows, self.places, self.lengths = rows, places, lengths
        _lists.append(self)

    def held(self) -> Tensor:
        """`[rows, places]`, whether there is an item."""
        places = torch.arange(self.places, device=self.lengths.device)
        return places < self.lengths.unsqueeze(1)

    def last(self, of: Tensor) -> Tensor:
        """`[rows, places, D]` to `[rows, D]`, at each list's last item."""
        index = (self.lengths - 1).view(-1, 1, 1).expand(-1, 1, of.shape[2])
        return of.gather(1, index).squeeze(1)

    def turned(self, of: Tensor) -> Tensor:
        """`[rows, places, D]` with each list's items in the opposite order, before what is none."""
        places = torch.arange(self.places, device=self.lengths.device)
        ends = self.lengths.unsqueeze(1)
        index = torch.where(places < ends, ends - 1 - places, places)
        return of.gather(1, index.unsqueeze(2).expand(-1, -1, of.shape[2]))

    def __len__(self) -> int:
        return self.places

    def __iter__(self) -> Iterator[Count]:
        return (Count(self, place) for place in range(self.places))

    def __getitem__(self, at: Any) -> Count:
        if not isinstance(at, int) or not -self.places <= at < self.places:
            raise asked()
        return Count(self, at % self.places)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise asked()


def _refuse(*_: object) -> NoReturn:
    raise asked()


class Count:
    """How many lists have an item at a place."""

    __slots__ = ("lists", "place")
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _refuse
    __add__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __bool__ = tolist = cpu = _refuse
    __hash__ = object.__hash__

    def __init__(self, lists: Lists, place: int) -> None:
        self.lists, self.place = lists, place

    def __radd__(self, begin: Any) -> End:
        before = begin.place if isinstance(begin, End) else begin - 1
        if before != self.place - 1:
            raise asked()
        return End(self.lists, self.place)

    def rows(self) -> Any:
        if self.place:
            raise asked()
        return self.lists.rows  # each has an item at the first place

    def __index__(self) -> int:
        self.rows()
        return _ROWS

    __int__ = item = __index__


class End(Count):
    """Where the items of a place end, in a packed sequence."""

    __slots__ = ()
    __radd__ = __index__ = __int__ = item = rows = _refuse

    def __add__(self, count: Any) -> End:  # type: ignore[override]
        return count.__radd__(self) if isinstance(count, Count) else NotImplemented


def any_are_packed() -> bool:
    return bool(_lists)


def forget_lists() -> None:
    """What a trace packed, and what stood for its tensors."""
    for of_this_trace in (_lists, _instead, _written):
        of_this_trace.clear()


def step(name: str, args: Any) -> tuple[bool, Any]:
    """Whether a call reads or writes one place, and what it gives then."""
    if name not in ("__getitem__", "__setitem__") or not isinstance(args[0], Tensor):
        return False, None
    tensor, index, *value = args
    first, *others = index if isinstance(index, tuple) else (index,)
    if not isinstance(first, slice) or not isinstance(first.stop, Count):
        return False, None
    lists, place = first.stop.lists, first.stop.place
    # Some rows begin with the first of them, and a place where the one before it ended.
    begins = first.start.place if isinstance(first.start, Count) else -1 - (first.start or 0)
    of_place = isinstance(first.stop, End)
    expected = place - 1 if of_place else -1
    if begins != expected or first.step not in (None, 1) or (value and others):
        raise asked()
    now = _instead.get(tensor, tensor)
    of_items = _are(now, lists.rows * lists.places)
    if of_place != of_items and (of_place or (value and place)):
        raise asked()
    if not of_items and not any(_are(now, rows) for rows in (lists.rows, lists.lengths.shape[0])):
        raise asked()
    if not value:
        _check_written(tensor)
        at = place if of_place else 0  # the first items are those of the first place
        # Of rows a copy, as what a model adds to them is for those that have an item (`+=`).
        rows = torch.unflatten(now, 0, (-1, lists.places))[:, at] if of_items else now.clone()
        return True, rows[(slice(None), *others)] if others else rows
    if not isinstance(value[0], Tensor):
        raise asked()
    new = value[0].to(now.dtype).expand(lists.rows, *now.shape[1:])
    if of_items:
        return True, _write_place(tensor, lists, place, new)
    held = lists.held()[:, place].view(-1, *[1] * (now.ndim - 1))
    return True, now.copy_(torch.where(held, new, now))  # which views of it are to see


def _joined(parts: Any, *others: Any, **named: Any) -> Tensor | None:
    """States of all places in order, put one behind the other, as all items."""
    if not _lists or others not in ((), (0,)) or named or not isinstance(parts, (list, tuple)):
        return None
    lists = _lists[-1]
    of_rows = all(isinstance(part, Tensor) and _are(part, lists.rows) for part in parts)
    if len(parts) != lists.places or not of_rows:
        return None
    return torch.stack(list(parts), 1).flatten(0, 1)


def _check_written(tensor: Tensor) -> None:
    if tensor in _written and tensor not in _instead:
        raise asked()


def _write_place(tensor: Tensor, lists: Lists, place: int, value: Tensor) -> Tensor | None:
    """Into all items, which nothing reads before the last place is written."""
    written = _written.setdefault(tensor, [])
    if len(written) != place:
        raise asked()
    written.append(value)
    if len(written) < lists.places:
        return None
    _instead[tensor] = torch.stack(written, 1).flatten(0, 1)
    return _instead[tensor]


def _are(tensor: Tensor, rows: Any) -> bool:
    return tensor.ndim > 0 and statically_known_true(tensor.shape[0] == rows)


def exchange(given: Any) -> Any:
    """The arguments of a call, or an answer, with what stands for tensors and numbers of rows."""

    def other(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            _check_written(leaf)
            return _instead.get(leaf, leaf)
        return leaf.rows() if isinstance(leaf, Count) else leaf

    return pytree.tree_map(other, given)


def follow_rows(made: Any) -> None:
    """What a model makes of a number of rows that is none yet, all of which are alike, is of as
    many as there are."""
    for result in tensors_in(made):
        if result.ndim and _is_rows(result.shape[0]):
            if not rows_are_alike(result):
                raise asked()
            _instead[result] = result[:1].expand(_lists[-1].rows, *result.shape[1:]).clone()


def _is_rows(size: Any) -> bool:
    return isinstance(size, int) and size == _ROWS


def asked() -> UnsupportedModelError:
    return refusal("how many lists have an item at each place (batch_sizes) is")


def refusal(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what} not to be had of sequences that are packed by their lengths{calling_line()}; a "
        "captured graph has fixed shapes and keeps all places, so let a recurrent layer of torch "
        "read them, or step over the places and keep a state where its list has ended, by "
        "torch.where"
    )


CALLS: dict[str, Callable[..., Any]] = {"cat": _joined, "concat": _joined}
