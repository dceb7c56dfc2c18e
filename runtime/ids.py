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
    position = f", position {', '.join(map(str, place))}" if len(place) else ""
    return IdRangeError(
        f"input {bound.input!r}{column}, {unit} {row}{position}: id {value} is out of range; table "
        f"{bound.table!r} has {bound.rows} rows, so ids are 0 to {bound.rows - 1}",
        row if unit == "row" else None,
    )


def clamp_ids(ids: Array, rows: int) -> None:
    """Take the nearest row of a table in place; what is not a number becomes row 0."""
    if ids.dtype.kind == "b":  # which numpy does not clip
        ids &= rows > 1
        return
    last: Any = rows - 1
    if ids.dtype.kind == "f":
        np.nan_to_num(ids, copy=False)
        last = _last_below(rows, ids.dtype)
    np.clip(ids, 0, last, out=ids)


def _last_below(rows: int, dtype: np.dtype[Any]) -> Any:
    """The largest number of a float dtype below `rows`: the last row itself may be rounded up."""
    with np.errstate(over="ignore"):
        last = dtype.type(rows - 1)
    return last if float(last) < rows else np.nextafter(last, dtype.type(0))
