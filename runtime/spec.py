"""What a captured model takes and gives, and where its bytes lie in a bucket: data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

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
ALIGNMENT = 256  # bytes; what CUDA allocations give, and more than any vector load needs


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One feature: `dtype[B, *row]`."""

    name: str
    dtype: str
    row: tuple[int, ...]

    def describe(self) -> str:
        return f"{self.dtype}[n{''.join(f', {d}' for d in self.row)}]"


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output: `dtype[B, *row]`."""

    name: str
    dtype: str
    row: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IdBound:
    """Ids of `input` (of one `column` of it, if given) must lie in `[0, rows)`."""

    input: str
    column: int | None
    rows: int
    table: str


@dataclass(frozen=True, slots=True)
class Slot:
    """A typed, contiguous view of a packed byte buffer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def view(self, buffer: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The slot as an array over `buffer`, a one-dimensional uint8 array."""
        raw = buffer[self.offset : self.offset + self.nbytes]
        return cast("np.ndarray[Any, Any]", raw.view(DTYPES[self.dtype]).reshape(self.shape))


def align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def total_bytes(slots: Sequence[Slot]) -> int:
    """Size of the buffer that holds all slots, in bytes."""
    return align(max((s.offset + s.nbytes for s in slots), default=0))
