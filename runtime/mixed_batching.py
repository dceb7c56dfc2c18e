"""Packs and pieces of requests with a user side or jagged values.

Packed, users of several requests stand one after the other, and each request's index and offsets
are moved by what stands before its own. So a request is looked at by itself before: its index may
name none but its users, and its offsets must end where its values do, or its rows would be
computed from another request. All else is checked in the whole, which is refused if anything is
wrong in it; then each request runs by itself and is told so.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from recreplay.runtime.batching import Convert, PackError, Piece, end_to_end
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.mixed import Divided, Order
from recreplay.runtime.mixed_rows import as_given, take_rows
from recreplay.runtime.spec import InputSpec

Array = np.ndarray[Any, Any]


class MixedBatching:
    """Of one model. Values are in the order of filling."""

    def __init__(self, manifest: Manifest, most: int, chunk: int | None, convert: Convert) -> None:
        """`most`: rows of a pack; `chunk`: rows of a piece."""
        self._order = order = Order(manifest)
        self._chunk, self._convert = chunk, convert
        # Inputs that have as many items as each other, by their places, and what a pack may have of
        # them: rows, then users if there are any, then the values of each group.
        alike = [([s for s in order.specs if s.kind != "values" and not s.user], most)]
        if manifest.users:
            by_user = [s for s in order.specs if s.kind != "values" and s.user]
            alike.append((by_user, manifest.users))
        self._least = len(alike)  # of these there is one at least
        for group in order.groups:
            rows = manifest.users if group.user else most
            alike.append((list(group.values), group.capacity * rows))
        self.room = tuple(most for _, most in alike)
        places = [[order.specs.index(spec) for spec in specs] for specs, _ in alike]
        # Looked up in one call each: this is asked of every request before it waits.
        self._counted = [first for first, *_ in places]
        pairs = [(first, at) for first, *others in places for at in others]
        self._firsts = itemgetter(0, *(first for first, _ in pairs))
        self._others = itemgetter(0, *(at for _, at in pairs))
        self._offsets = [at for at, s in enumerate(order.specs) if s.kind == "offsets"]

    def pieces(self, values: Sequence[Any], n: int) -> list[Piece]:
        chunk = self._chunk or n
        if not isinstance(values, Divided):
            if n <= chunk and (takes := self._takes(values)):
                return [Piece(values, takes)]
            values, n = self._convert(values)
            assert isinstance(values, Divided)
        return [self._piece(values, at, min(at + chunk, n)) for at in range(0, n, chunk)]

    def _piece(self, divided: Divided, start: int, stop: int) -> Piece:
        values = as_given(self._order, take_rows(self._order, divided, start, stop))
        takes = self._takes(values)
        assert takes is not None
        return Piece(values, takes)

    def _takes(self, values: Sequence[Any]) -> tuple[int, ...] | None:
        """None where inputs that belong together have different numbers of items."""
        try:
            counts = list(map(len, values))
        except TypeError:  # one is no array at all
            return None
        for at in self._offsets:
            counts[at] -= 1
        if self._firsts(counts) != self._others(counts):
            return None
        takes = tuple([counts[at] for at in self._counted])
        return takes if min(takes[: self._least]) > 0 else None

    def pack(self, pieces: Sequence[Piece]) -> tuple[Array, ...]:
        try:
            return self._packed(pieces)
        except Exception as error:  # of values as they came, any
            raise PackError(str(error)) from error

    def _packed(self, pieces: Sequence[Piece]) -> tuple[Array, ...]:
        rows, *more = np.array([piece.takes for piece in pieces]).T
        users = more.pop(0) if self._least > 1 else None
        totals = iter(more)  # of values, by group
        packed = []
        columns = zip(*(piece.values for piece in pieces), strict=True)
        for spec, column in zip(self._order.specs, columns, strict=True):
            if spec.kind in ("rows", "values"):
                packed.append(end_to_end(column))
            elif spec.kind == "index":
                assert users is not None
                packed.append(_index(column, rows, users))
            else:
                mine = users if spec.user else rows
                assert mine is not None
                packed.append(_division(spec, column, mine, next(totals)))
        return tuple(packed)


def _numbers(values: Sequence[Any]) -> Array:
    """End to end. Raises where moving would make others of them, as of bools."""
    joined = end_to_end(values)
    if joined.ndim != 1 or joined.dtype.kind != "i":
        raise PackError("an index or a division is not of whole numbers")
    return joined.astype(np.int64)  # where what is moved has room, whatever it came in


def _before(counts: Array) -> Array:
    """What stands before each."""
    before: Array = counts.cumsum() - counts
    return before


def _index(column: Sequence[Any], rows: Array, users: Array) -> Array:
    index = _numbers(column)
    if ((index < 0) | (index >= users.repeat(rows))).any():
        raise PackError("an index names no user of its request")
    index += _before(users).repeat(rows)
    return index


def _division(spec: InputSpec, column: Sequence[Any], rows: Array, totals: Array) -> Array:
    """`rows`: how many each request has of what is divided; `totals`: how many values."""
    if spec.kind == "lengths":
        lengths = _numbers(column)
        if (np.add.reduceat(lengths, _before(rows), dtype=np.int64) != totals).any():
            raise PackError("lengths do not add up to the number of values")
        return lengths
    if any(value[0] for value in column):
        raise PackError("offsets do not begin with 0")
    moves = _before(totals).repeat(rows)
    if spec.kind == "starts":
        starts = _numbers(column)
        starts += moves
        return starts
    # Where the values of a request end those of the next begin.
    offsets = _numbers([column[0], *(value[1:] for value in column[1:])])
    if (offsets[rows.cumsum()] != totals).any():
        raise PackError("offsets do not end with the number of values")
    offsets[1:] += moves
    return offsets
