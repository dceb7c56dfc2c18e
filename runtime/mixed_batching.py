"""Packs and pieces of requests with a user side or jagged values.

Packed, users of several requests stand one after the other, and each request's index and offsets
are moved by what stands before its own. So a request is looked at by itself before: its index may
name none but its users, and its offsets must end where its values do, or its rows would be
computed from another request. All else is checked in the whole, which is refused if anything is
wrong in it; then each request runs by itself and is told so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recreplay.runtime.batching import Convert, PackError, Piece, end_to_end
from recreplay.runtime.jagged import division_of
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.mixed import Divided, Order, take_rows
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
        self._places = [[order.specs.index(spec) for spec in specs] for specs, _ in alike]

    def pieces(self, values: Sequence[Any], n: int) -> list[Piece]:
        chunk = self._chunk or n
        if not isinstance(values, Divided):
            if n <= chunk and (takes := self._takes(values)):
                return [Piece(values, takes)]
            values, n = self._convert(values)
            assert isinstance(values, Divided)
        return [self._piece(values, at, min(at + chunk, n)) for at in range(0, n, chunk)]

    def _piece(self, divided: Divided, start: int, stop: int) -> Piece:
        part = take_rows(self._order, divided, start, stop)
        values = [
            division_of(spec, value) if spec.kind in ("offsets", "starts", "lengths") else value
            for spec, value in zip(self._order.specs, part, strict=True)
        ]
        takes = self._takes(values)
        assert takes is not None
        return Piece(values, takes)

    def _takes(self, values: Sequence[Any]) -> tuple[int, ...] | None:
        """None where inputs that belong together have different numbers of items."""
        try:
            counts = [_items(s, v) for s, v in zip(self._order.specs, values, strict=True)]
        except TypeError:  # one is no array at all
            return None
        found = [{counts[at] for at in places} for places in self._places]
        if any(len(numbers) > 1 for numbers in found):
            return None
        takes = tuple(numbers.pop() for numbers in found)
        return takes if min(takes[: self._least]) > 0 else None

    def pack(self, requests: Sequence[Sequence[Any]]) -> tuple[Array, ...]:
        try:
            return self._packed(requests)
        except Exception as error:  # of values as they came, any
            raise PackError(str(error)) from error

    def _packed(self, requests: Sequence[Sequence[Any]]) -> tuple[Array, ...]:
        columns = [*zip(*requests, strict=True)]
        specs = self._order.specs
        users = next((_counts(s, c) for s, c in zip(specs, columns, strict=True) if s.user), None)
        packed = []
        for at, (spec, column) in enumerate(zip(specs, columns, strict=True)):
            joined = end_to_end(column)
            if spec.kind == "index":
                assert users is not None
                joined = _move_index(joined, _counts(spec, column), users)
            elif spec.kind == "lengths":
                _check_lengths(
                    joined, _counts(spec, column), _counts(specs[at + 1], columns[at + 1])
                )
            elif spec.kind in ("offsets", "starts"):
                lengths = np.array([len(value) for value in column])
                joined = _move_offsets(
                    spec, joined, lengths, _counts(specs[at + 1], columns[at + 1])
                )
            packed.append(joined)
        return tuple(packed)


def _items(spec: InputSpec, value: Any) -> int:
    """How many rows, users or values an input speaks of."""
    return len(value) - (spec.kind == "offsets")


def _counts(spec: InputSpec, column: Sequence[Any]) -> Array:
    return np.array([_items(spec, value) for value in column])


def _before(counts: Array) -> Array:
    """What stands before each."""
    return np.cumsum(counts) - counts


def _whole_numbers(array: Array) -> None:
    """Raise where moving would make others of them, as of bools."""
    if array.ndim != 1 or array.dtype.kind != "i":
        raise PackError("an index or a division is not of whole numbers")


def _move_index(index: Array, rows: Array, users: Array) -> Array:
    _whole_numbers(index)
    if ((index < 0) | (index >= np.repeat(users, rows))).any():
        raise PackError("an index names no user of its request")
    first: Array = np.repeat(_before(users), rows).astype(index.dtype)
    return index + first


def _check_lengths(lengths: Array, rows: Array, totals: Array) -> None:
    _whole_numbers(lengths)
    if (np.add.reduceat(lengths, _before(rows), dtype=np.int64) != totals).any():
        raise PackError("lengths do not add up to the number of values")


def _move_offsets(spec: InputSpec, offsets: Array, lengths: Array, totals: Array) -> Array:
    """`lengths`: how many offsets each request has; `totals`: how many values."""
    _whole_numbers(offsets)
    first = _before(lengths)
    if offsets[first].any():
        raise PackError("offsets do not begin with 0")
    if spec.kind == "offsets" and (offsets[first + lengths - 1] != totals).any():
        raise PackError("offsets do not end with the number of values")
    moved = offsets + np.repeat(_before(totals), lengths).astype(offsets.dtype)
    # Where the values of a request end those of the next begin.
    return np.delete(moved, first[1:]) if spec.kind == "offsets" else moved
