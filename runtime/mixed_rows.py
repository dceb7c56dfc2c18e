"""Some rows of a checked request, which are those of candidates: the user side goes with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from recreplay.runtime.jagged import division_of
from recreplay.runtime.mixed import Divided, Order

Array = np.ndarray[Any, Any]


def take_rows(order: Order, values: Divided, start: int, stop: int) -> Divided:
    """Rows from `start` to `stop`; views."""
    rows, by_user = len(order.rows), len(order.by_user)
    taken = Divided([array[start:stop] for array in values[:rows]])
    taken += values[rows : rows + by_user]
    for group, starts, arrays in order.divided(values):
        if group.user:
            taken += [starts, *arrays]
            continue
        begin, end = starts[start], starts[stop]
        taken.append(starts[start : stop + 1] - begin)
        taken += [array[begin:end] for array in arrays]
    return taken


def pick_rows(order: Order, values: Divided, picked: Array) -> Divided:
    """The rows that `picked`, int64 `[k]`, names, in its order; copies."""
    rows, by_user = len(order.rows), len(order.by_user)
    found = Divided([array[picked] for array in values[:rows]])
    found += values[rows : rows + by_user]
    for group, starts, arrays in order.divided(values):
        if group.user:
            found += [starts, *arrays]
            continue
        begin = starts[picked]
        lengths = starts[picked + 1] - begin
        ends = np.concatenate(([0], lengths.cumsum()))
        # Where each value lies: as far from the first of its row as it will lie there.
        places = np.arange(ends[-1]) + (begin - ends[:-1]).repeat(lengths)
        found.append(ends)
        found += [array[places] for array in arrays]
    return found


def as_given(order: Order, values: Divided) -> list[Array]:
    """The values as a request has them, with its own offsets or lengths."""
    return [
        division_of(spec, array) if spec.kind in ("offsets", "starts", "lengths") else array
        for spec, array in zip(order.specs, values, strict=True)
    ]
