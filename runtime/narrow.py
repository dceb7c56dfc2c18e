"""Ids wider than the captured dtype: taken where they fit, refused or clamped where they do not.

Narrowing comes after the check, never before: 2**32 + 5 must not become 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recreplay.runtime.ids import out_of_range
from recreplay.runtime.spec import IdBound

Array = np.ndarray[Any, Any]


def narrow_ids(
    ids: Array,
    wanted: np.dtype[Any],
    bounds: Sequence[IdBound],
    clamp: bool,
    unit: str = "row",
    first_row: int = 0,
) -> Array | None:
    """Integer `ids` of one input in the narrower integer dtype `wanted`.

    `bounds` are the input's. None if a value that no bound covers does not fit. With `clamp`, what
    does not fit becomes the nearest number that does, which the clamping of ids then sees. For
    messages, `unit` is what the first dimension counts, and `first_row` where these begin.
    """
    limits = np.iinfo(wanted)
    bad = (ids < limits.min) | (ids > limits.max)
    if not bad.any():
        return ids.astype(wanted)
    covered = np.zeros_like(bad)
    for bound in bounds:
        bound.of(covered)[...] = True
        if not clamp and bound.of(bad).any():
            place = np.argwhere(bound.of(bad))[0]
            value = bound.of(ids)[tuple(place)]
            raise out_of_range(bound, first_row + place[0], place[1:], value, unit)
    if (bad & ~covered).any():
        return None
    return ids.clip(limits.min, limits.max).astype(wanted)
