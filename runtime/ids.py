"""Ids outside of their table: said in one way wherever they are found, and clamped in one way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recreplay.runtime.errors import IdRangeError
from recreplay.runtime.spec import IdBound

Array = np.ndarray[Any, Any]


def out_of_range(
    bound: IdBound, row: int, place: Sequence[int], value: object, unit: str = "row"
) -> IdRangeError:
    """The error for one id; `place` is where in its row it is, empty where a row is one id.

    `unit`: what `row` counts, `item` for jagged values that are not divided by rows yet.
    """
    column = "" if bound.column is None else f" column {bound.column}"
    column += f" of dimension {bound.axis}" if bound.axis > 1 else ""
    position = f", position {', '.join(map(str, place))}" if len(place) else ""
    counted = f", counted from {bound.least}" if bound.least else ""
    return IdRangeError(
        f"input {bound.input!r}{column}, {unit} {row}{position}: id {value} is out of range; table "
        f"{bound.table!r} has {bound.rows - bound.least} rows{counted}, so ids are {bound.least} "
        f"to {bound.rows - 1}",
        row if unit == "row" else None,
    )


def within(ids: Array, bound: IdBound) -> Array:
    """Which ids are in range; what is not a number is not."""
    found: Array = (ids >= bound.least) & (ids < bound.rows)
    return found


def clamp_ids(ids: Array, bound: IdBound) -> None:
    """Take the nearest row of a table in place; what is not a number becomes the first."""
    if ids.dtype.kind == "b":  # which numpy does not clip
        ids &= bound.rows > 1
        ids |= bound.least > 0
        return
    last: Any = bound.rows - 1
    if ids.dtype.kind == "f":
        np.nan_to_num(ids, copy=False)
        last = _last_below(bound.rows, ids.dtype)
    np.clip(ids, bound.least, last, out=ids)


def _last_below(rows: int, dtype: np.dtype[Any]) -> Any:
    """The largest number of a float dtype below `rows`: the last row itself may be rounded up."""
    with np.errstate(over="ignore"):
        last = dtype.type(rows - 1)
    return last if float(last) < rows else np.nextafter(last, dtype.type(0))
