"""Several requests as one, one request as several: pure functions on values by row.

`recreplay.runtime.mixed_batching` has the same for requests with a user side or jagged values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
# Anything array-like as arrays of the captured dtypes, and their number of rows, or the InputError
# that says why not.
Convert = Callable[[Sequence[Any]], tuple[list[Array], int]]


class PackError(Exception):
    """Requests whose inputs do not go together: at least one is not as captured."""


class Piece(NamedTuple):
    """A request, or some rows of one: its values in order, as they came or cut, and what they take
    of a pack: rows first, then what else there is little room for."""

    values: Sequence[Any]
    takes: tuple[int, ...]


class Batching(Protocol):
    """How the requests of a model become one replay, and one becomes several."""

    room: tuple[int, ...]  # what a pack may take, as `Piece.takes` counts it

    def pieces(self, values: Sequence[Any], n: int) -> list[Piece]:
        """A request of `n` rows, by its own account, in parts of `chunk_rows`. Raises InputError
        where its inputs do not go together."""

    def pack(self, pieces: Sequence[Piece]) -> Sequence[Any]:
        """The values of several pieces as those of one request, rows end to end. Raises
        PackError."""


class RowBatching:
    """Of models whose inputs all have a row for each row of a request."""

    def __init__(self, most: int, chunk: int | None, convert: Convert) -> None:
        """`most`: rows of a pack; `chunk`: rows of a piece."""
        self.room: tuple[int, ...] = (most,)
        self._chunk, self._convert = chunk, convert

    def pieces(self, values: Sequence[Any], n: int) -> list[Piece]:
        chunk = self._chunk or n
        if n > chunk or not _have_rows(values, n):
            values, n = self._convert(values)
        if n <= chunk:
            return [Piece(values, (n,))]
        return [Piece(part, (len(part[0]),)) for part in cut(values, n, chunk)]

    def pack(self, pieces: Sequence[Piece]) -> list[Array]:
        return pack([piece.values for piece in pieces])


def _have_rows(values: Sequence[Any], n: int) -> bool:
    try:
        return {*map(len, values)} == {n}
    except TypeError:  # one is no array at all
        return False


def pack(requests: Sequence[Sequence[Any]]) -> list[Array]:
    """The inputs of several requests end to end; each has the same inputs in the same order.

    Values are as they came, so that joining them may fail in any way of theirs: PackError.
    """
    try:
        return [end_to_end(values) for values in zip(*requests, strict=True)]
    except Exception as error:
        raise PackError(str(error)) from error


def end_to_end(values: Sequence[Any]) -> Array:
    """One input of several requests. Raises PackError where dtypes differ, which joining would make
    right, or whatever joining does."""
    if len({getattr(value, "dtype", None) for value in values}) > 1:
        raise PackError("an input has several dtypes")
    if any(isinstance(value, np.ma.MaskedArray) for value in values):
        raise PackError("an array has a mask, which joining would drop")
    return np.concatenate(values)


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
