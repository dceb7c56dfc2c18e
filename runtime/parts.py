"""Which rows of a request replay in which bucket, where jagged values need room as well: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recreplay.runtime.errors import CapacityError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `[start, stop)` of a request, and the bucket they run in.

    `moved`: a smaller bucket has rows enough, but no room for the values.
    """

    bucket: int
    start: int
    stop: int
    moved: bool


@dataclass(frozen=True, slots=True)
class Load:
    """The values of one jagged input: row i has `[starts[i], starts[i + 1])` of them.

    A bucket of B rows holds `capacity * B`.
    """

    name: str
    starts: Array
    capacity: int


def cut_rows(
    rows: int, sizes: Sequence[int], loads: Sequence[Load], first_row: int = 0
) -> list[Part]:
    """The parts of a request of `rows` rows over buckets of the ascending `sizes`.

    One part where some bucket holds all of it; else greedily as many rows as the largest bucket
    holds. Raises `CapacityError` where it does not hold a single row, with rows counted from
    `first_row`.
    """
    parts = []
    start = 0
    largest = sizes[-1]
    while start < rows:
        stop = min(rows, start + largest)
        for load in loads:
            room = load.starts[start] + load.capacity * largest
            stop = min(stop, int(np.searchsorted(load.starts, room, side="right")) - 1)
            if stop == start:
                count = int(load.starts[start + 1] - load.starts[start])
                raise CapacityError(
                    f"input {load.name!r}, row {first_row + start} has {count} values; the largest "
                    f"bucket, of {largest} rows, holds {load.capacity * largest}; send fewer, or "
                    f"capture with a capacity above {load.capacity} a row"
                )
        bucket, moved = _bucket(stop - start, sizes, start, stop, loads)
        parts.append(Part(bucket, start, stop, moved))
        start = stop
    return parts


def _bucket(
    rows: int, sizes: Sequence[int], start: int, stop: int, loads: Sequence[Load]
) -> tuple[int, bool]:
    """The smallest bucket for these rows and their values, and whether the values decided."""
    enough = [size for size in sizes if size >= rows]
    needed = [(load.starts[stop] - load.starts[start], load.capacity) for load in loads]
    bucket = next(b for b in enough if all(count <= c * b for count, c in needed))
    return bucket, bucket != enough[0]
