"""Several requests as one, one request as several: pure functions on arrays by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class PackError(Exception):
    """Requests whose inputs do not go together: at least one is not as captured."""


def pack(requests: Sequence[Sequence[Any]]) -> list[Array]:
    """The inputs of several requests end to end; each has the same inputs in the same order.

    Values are as they came, so that joining them may fail in any way of theirs: PackError. So do
    those of different dtypes, which joining would make right.
    """
    try:
        packed = []
        for values in zip(*requests, strict=True):
            if len({getattr(value, "dtype", None) for value in values}) > 1:
                raise PackError("an input has several dtypes")
            packed.append(np.concatenate(values))
        return packed
    except Exception as error:
        raise PackError(str(error)) from error


def unpack(outputs: Mapping[str, Array], rows: Sequence[int]) -> Iterator[dict[str, Array]]:
    """The outputs of each request of a pack, which had so many `rows`; views of the whole."""
    for start, stop in pairwise(accumulate(rows, initial=0)):
        yield {name: array[start:stop] for name, array in outputs.items()}


def cut(arrays: Sequence[Array], rows: int, most: int) -> list[list[Array]]:
    """A request in parts of `most` rows; the last may have fewer."""
    return [[a[start : start + most] for a in arrays] for start in range(0, rows, most)]


def join(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The outputs of a request from those of its parts, in order."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
