"""Buckets for requests whose values need room too: every part fits, and no part is too small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recreplay.runtime.errors import CapacityError
from recreplay.runtime.parts import Load, Part, cut_rows

SIZES = [1, 3, 8]


def load(lengths: list[int], capacity: int, name: str = "clicks") -> Load:
    return Load(name, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), capacity)


@given(
    data=st.integers(1, 30).flatmap(
        lambda n: st.lists(
            st.tuples(st.lists(st.integers(0, 16), min_size=n, max_size=n), st.integers(2, 5)),
            min_size=1,
            max_size=3,
        )
    )
)
def test_parts_are_greedy_and_in_the_smallest_bucket(data: list[tuple[list[int], int]]) -> None:
    rows = len(data[0][0])
    loads = [load(lengths, capacity) for lengths, capacity in data]

    def fits(size: int, start: int, stop: int) -> bool:
        return stop - start <= size and all(
            sum(lengths[start:stop]) <= capacity * size for lengths, capacity in data
        )

    parts = cut_rows(rows, SIZES, loads)
    assert [p.start for p in parts] == [0, *(p.stop for p in parts[:-1])]
    assert parts[-1].stop == rows
    for part in parts:
        assert part.bucket == next(s for s in SIZES if fits(s, part.start, part.stop))
        assert part.moved == (part.bucket > next(s for s in SIZES if s >= part.stop - part.start))
        assert part.stop == rows or not fits(SIZES[-1], part.start, part.stop + 1)


def test_a_row_that_fits_nowhere() -> None:
    assert cut_rows(2, SIZES, [load([16, 0], 2)]) == [Part(8, 0, 2, True)]
    with pytest.raises(
        CapacityError,
        match=r"^input 'tags', row 1 has 17 values; the largest bucket, of 8 rows, holds 16; send "
        r"fewer, or capture with a capacity above 2 a row$",
    ):
        cut_rows(2, SIZES, [load([0, 0], 2), load([1, 17], 2, "tags")])


def test_without_values_rows_alone_decide() -> None:
    assert cut_rows(10, SIZES, []) == [Part(8, 0, 8, False), Part(3, 8, 10, False)]
