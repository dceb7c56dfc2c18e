"""Jagged inputs on the host: divide values among rows, check the division, copy into staging.

A wrong offset makes a lookup read memory that is not its own, so offsets and lengths are checked
before anything else, on a copy that nobody else can write to.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from recreplay.runtime.errors import IdRangeError, InputShapeError, OffsetsError
from recreplay.runtime.ids import clamp_ids, out_of_range, within
from recreplay.runtime.manifest import Bucket
from recreplay.runtime.spec import IdBound, InputSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Group:
    """Values that one input of offsets or lengths divides among rows."""

    division: InputSpec
    values: tuple[InputSpec, ...]

    @property
    def user(self) -> bool:
        return self.division.user

    @property
    def capacity(self) -> int:
        """Values per row that a bucket has room for, the same for all of a group."""
        return self.values[0].capacity


def groups(inputs: Sequence[InputSpec]) -> list[Group]:
    """The jagged groups among the inputs of a model, in their order."""
    return [
        Group(spec, tuple(v for v in inputs if v.kind == "values" and v.along == spec.name))
        for spec in inputs
        if spec.kind in ("offsets", "starts", "lengths")
    ]


def rows_of(spec: InputSpec, division: Sized) -> int:
    """The number of rows that offsets or lengths speak of, or the items of any other input."""
    return len(division) - (spec.kind == "offsets")


def divide(group: Group, division: Array, values: Sequence[Array]) -> Array:
    """int64 `[rows + 1]`: row i of the group has the values from item i to item i + 1.

    `division` as the request gives it. Raises `InputShapeError` or `OffsetsError`.
    """
    name, total = group.values[0].name, len(values[0])
    for spec, array in zip(group.values, values, strict=True):
        if len(array) != total:
            raise InputShapeError(
                f"input {spec.name!r} has {len(array)} values, but input {name!r} has {total}; "
                f"input {group.division.name!r} divides both"
            )
    if group.division.kind == "lengths":
        return _from_lengths(group.division.name, division.astype(np.int64), name, total)
    return _from_offsets(group.division, division.astype(np.int64), name, total)


def division_of(spec: InputSpec, starts: Array) -> Array:
    """The other way around: what a request gives for rows that begin at `starts`."""
    if spec.kind == "lengths":
        return np.diff(starts)
    return starts[:-1] if spec.kind == "starts" else starts


def _from_lengths(what: str, lengths: Array, name: str, total: int) -> Array:
    if len(lengths) and int(lengths.min()) < 0:
        row = int(np.argmax(lengths < 0))
        raise OffsetsError(f"input {what!r}, row {row}: length {lengths[row]}; expected 0 or more")
    starts = np.zeros(len(lengths) + 1, np.int64)
    # Lengths above the total are cut to what cannot be right either, so that no sum overflows.
    np.cumsum(np.minimum(lengths, total + 1), out=starts[1:])
    if starts[-1] != total:
        added = sum(map(int, lengths))
        raise OffsetsError(
            f"input {what!r} adds up to {added}, but input {name!r} has {total} values; the "
            "lengths of all rows add up to the number of values"
        )
    return starts


def _from_offsets(spec: InputSpec, offsets: Array, name: str, total: int) -> Array:
    what = spec.name
    starts = np.append(offsets, total) if spec.kind == "starts" else offsets
    if len(starts) > 1 and starts[0] != 0:
        raise OffsetsError(f"input {what!r} begins with {starts[0]}; offsets begin with 0")
    if spec.kind == "offsets" and starts[-1] != total:
        raise OffsetsError(
            f"input {what!r} ends with {starts[-1]}, but input {name!r} has {total} values; the "
            "last offset is the number of values"
        )
    falls = starts[1:] < starts[:-1]
    if falls.any():
        row = int(np.argmax(falls))
        if row == len(starts) - 2:
            raise OffsetsError(
                f"input {what!r}, row {row}: offset {starts[row]}, but input {name!r} has {total} "
                "values; an offset is at most their number"
            )
        raise OffsetsError(
            f"input {what!r}, row {row + 1}: offset {starts[row + 1]} after {starts[row]}; offsets "
            "never fall"
        )
    return starts


class GroupFiller:
    """Copies one jagged group into the staging memory of one bucket."""

    def __init__(
        self,
        group: Group,
        bucket: Bucket,
        bounds: Sequence[IdBound],
        memory: Array,
        check: str,
    ) -> None:
        slots = {slot.name: slot for slot in bucket.inputs}
        self._group = group
        self._division = slots[group.division.name].view(memory)
        self._values = [slots[spec.name].view(memory) for spec in group.values]
        self._bounds = [
            min((b for b in bounds if b.input == spec.name), key=lambda b: b.rows, default=None)
            for spec in group.values
        ]
        self._check = check

    def __call__(self, starts: Array, values: Sequence[Array], first_row: int = 0) -> int:
        """Copy and check; returns how many ids were clamped.

        Rows beyond the request's have no values, and what lies beyond the request's values is 0, or
        the least id, as models look up these as well; capture has proved it to be harmless.
        """
        rows, total = len(starts) - 1, len(values[0])
        division = self._division
        if self._group.division.kind == "lengths":
            np.subtract(starts[1:], starts[:-1], out=division[:rows], casting="same_kind")
            division[rows:] = 0
        else:
            division[: rows + 1] = starts
            division[rows + 1 : -1] = total
            division[-1] = len(self._values[0])
        clamped = 0
        for view, given, bound in zip(self._values, values, self._bounds, strict=True):
            if given.dtype != view.dtype and bound is not None:
                given = self._fitting(given, view.dtype, bound, starts, first_row)
            view[:total] = given
            view[total:] = 0 if bound is None else bound.least
            if bound is not None and total and self._check != "off":
                clamped += self._checked(view[:total], bound, starts, first_row)
        return clamped

    def _checked(self, ids: Array, bound: IdBound, starts: Array, first_row: int) -> int:
        unsigned = f"u{ids.dtype.itemsize}"
        signed = ids.dtype.kind == "i" and bound.least == 0
        if signed and int(ids.view(unsigned).max()) < bound.rows:
            return 0  # one reduction where all is well: negative ids are very large unsigned ones
        bad = ~within(ids, bound)
        if not bad.any():
            return 0
        if self._check == "error":
            raise _first_bad(ids, bad, bound, starts, first_row)
        clamp_ids(ids, bound)
        return int(bad.sum())

    def _fitting(
        self, ids: Array, dtype: np.dtype[Any], bound: IdBound, starts: Array, first_row: int
    ) -> Array:
        """Ids that are staged narrower than they come: none becomes another by it."""
        limits = np.iinfo(dtype)
        if int(ids.view(f"u{ids.itemsize}").max(initial=0)) <= limits.max:
            return ids  # one reduction where all is well
        bad = (ids < limits.min) | (ids > limits.max)
        if not bad.any():
            return ids
        if self._check != "clamp":
            raise _first_bad(ids, bad, bound, starts, first_row)
        return ids.clip(limits.min, limits.max)


def _first_bad(
    ids: Array, bad: Array, bound: IdBound, starts: Array, first_row: int
) -> IdRangeError:
    at = int(np.argmax(bad))
    row = int(np.searchsorted(starts, at, side="right")) - 1
    return out_of_range(bound, first_row + row, [at - starts[row]], ids[at])
