"""Whether two results are the same but for rounding, which is as large as what was added up.

A sum of large terms may be small: its rounding is to be compared with the size of the output, as
other rows show it, and not with itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def column_scale(values: Array) -> Array:
    """The largest finite size of each column of `values` `[n, ...]`, over its rows: `[...]`."""
    sizes = np.abs(values.astype(np.float64))
    found: Array = np.max(sizes, axis=0, initial=0.0, where=np.isfinite(sizes))
    return found


def is_close(got: Array, want: Array, rtol: float, atol: float, scale: Array | float) -> Array:
    """Where `got` is within `atol + rtol * max(|want|, scale)` of `want`; NaN is NaN, and infinity
    infinity. What is no float, such as an id, has to be the same."""
    if want.dtype.kind != "f":
        same: Array = got == want
        return same
    got, want = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity less itself
        near = np.abs(got - want) <= atol + rtol * np.maximum(np.abs(want), scale)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    same |= near & np.isfinite(want)
    return same


def all_close(got: Array, want: Array, rtol: float, atol: float, scale: Array) -> bool:
    """Whether all of `got` is as close to `want` as that."""
    return bool(is_close(got, want, rtol, atol, scale).all())


def firm_part(stored: Mapping[str, Any], bucket: int, name: str, got: Array) -> Array:
    """An output as it is compared with the answer that an artifact stores: with this in the places
    that hang on a rounding of the machine that captured."""
    firm = stored.get(f"{bucket}/decided/{name}")
    return got if firm is None else np.where(firm, got, stored[f"{bucket}/out/{name}"])
