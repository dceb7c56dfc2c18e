"""What a captured model takes and gives, and where its bytes lie in a bucket: data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, cast

import numpy as np

# numpy has no bfloat16; an input or output of that dtype is refused at capture.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        "bool",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "float32",
        "float64",
    )
}
_BYTES = {**{name: dtype.itemsize for name, dtype in DTYPES.items()}, "bfloat16": 2}
ALIGNMENT = 256  # bytes; what CUDA allocations give, and more than any vector load needs


Kind = Literal["rows", "index", "values", "offsets", "starts", "lengths", "mask"]
USER_INDEX = "user_index"  # the input of kind `index`


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input. What its first dimension counts is its `kind`, in a bucket of B rows:

    - `rows`: `dtype[B, *row]`, one item a row;
    - `index`: `dtype[B]`, which user each row is for;
    - `values`: `dtype[N]`, the values of all rows end to end, divided by the input `along`; a
      bucket holds `capacity * B` of them;
    - `offsets`, `starts` or `lengths`: `dtype[B + 1]`, `[B]` or `[B]`, where each row's values
      begin (with or without their number at the end), or how many it has;
    - `mask`: `bool[B]`, which rows are the request's and which pad it: the runtime says so itself,
      and requests do not have it.

    Where `user` is set, the rows are those of users and not of candidates: B is then the largest
    number of users in a request, whatever the bucket.
    """

    name: str
    dtype: str
    row: tuple[int, ...]
    kind: Kind = "rows"
    user: bool = False
    along: str = ""
    capacity: int = 0

    @property
    def by_row(self) -> bool:
        """Whether it has an item for each row of a request, and nothing else."""
        return self.kind == "rows" and not self.user

    def describe(self) -> str:
        rows = "users" if self.user else "n"
        first = {"values": "N", "offsets": f"{rows} + 1"}.get(self.kind, rows)
        return f"{self.dtype}[{first}{''.join(f', {d}' for d in self.row)}]"

    def staged(self, rows: int) -> tuple[int, ...]:
        """Its shape in the staging memory of a bucket of so many rows, or for so many users.

        Offsets are staged with two more than rows: the number of values, and the capacity. The
        values between the two belong to no row.
        """
        if self.kind == "values":
            return (self.capacity * rows,)
        return (rows + 2 if self.kind in ("offsets", "starts") else rows, *self.row)


@dataclass(frozen=True, slots=True)
class RowMask:
    """The input of kind `mask` of a model that compares the rows of a request, and its place among
    the inputs of the model."""

    name: str
    at: int


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output: `dtype[B, *row]`."""

    name: str
    dtype: str
    row: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IdBound:
    """Ids of `input` (of one `column` of it, if given) must lie in `[least, rows)`.

    `column` is a place in dimension `axis`: of `[B, L, 3]`, with items of three ids, it is in 2.
    `table` is where they are looked up, for people: `NAME[4:]` if the model adds 4 to them. `least`
    is what the model takes from them, as it does from lengths to find the last of so many places.
    """

    input: str
    column: int | None
    rows: int
    table: str
    least: int = 0
    axis: int = 1

    def of(self, ids: Any) -> Any:
        """The ids that it is of, of all of the input `[n, ...]`: a view of an array or tensor."""
        if self.column is None:
            return ids
        return ids[(*[slice(None)] * self.axis, self.column)]


@dataclass(frozen=True, slots=True)
class Slot:
    """A typed, contiguous view of a packed byte buffer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * _BYTES[self.dtype]

    def view(self, buffer: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The slot as an array over `buffer`, a one-dimensional uint8 array."""
        raw = buffer[self.offset : self.offset + self.nbytes]
        return cast("np.ndarray[Any, Any]", raw.view(DTYPES[self.dtype]).reshape(self.shape))


def align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def total_bytes(slots: Sequence[Slot]) -> int:
    """Size of the buffer that holds all slots, in bytes."""
    return align(max((s.offset + s.nbytes for s in slots), default=0))
