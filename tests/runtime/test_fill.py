"""Filling staging memory: copies, padding and id checks of one bucket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recreplay.runtime.errors import IdRangeError
from recreplay.runtime.fill import Check, Filler, blocks, filling_order
from recreplay.runtime.manifest import Bucket
from recreplay.runtime.plan import Plan
from recreplay.runtime.spec import IdBound, Slot, align, total_bytes

NO_PLAN = Plan("single", (), ())


@pytest.fixture(autouse=True, scope="module", params=["together", "one by one"])
def copying(request: pytest.FixtureRequest) -> Iterator[None]:
    """Inputs of a block are padded together, or one by one where they are long."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "one by one":
            patch.setattr("recreplay.runtime.fill._LONG", 0)
        yield


def bucket(size: int, inputs: list[tuple[str, str, tuple[int, ...]]], staged: int = 0) -> Bucket:
    """Inputs `(name, dtype, row)`; the first `staged` lie side by side."""
    slots, end = [], 0
    for i, (name, dtype, row) in enumerate(inputs):
        end = end if i < staged else align(end)
        slots.append(Slot(name, dtype, (size, *row), end))
        end += slots[-1].nbytes
    groups: tuple[Slot, ...] = ()
    if staged:
        last = slots[staged - 1]
        items = (last.offset + last.nbytes) // 8
        groups = (Slot("group", "int64", (items,), 0),)
    return Bucket(size, NO_PLAN, (), tuple(slots), groups, (), ())


class Staged:
    def __init__(self, made: Bucket, bounds: list[IdBound], check: Check = "error") -> None:
        self.memory = np.full(total_bytes(made.inputs), 0xEE, dtype=np.uint8)
        self.order = [name for name, _ in filling_order([made])]
        self.filler = Filler(made, self.order, bounds, self.memory, check)
        self.views = {slot.name: slot.view(self.memory) for slot in made.inputs}

    def fill(self, rows: int, **values: Any) -> int:
        return self.filler.prepare(rows)([values[name] for name in self.order])


def test_rows_are_copied_and_padded_with_the_first() -> None:
    made = bucket(4, [("a", "int64", (2,)), ("b", "int64", (2,)), ("x", "float32", (3,))], staged=2)
    staged = Staged(made, [])
    a, b = np.arange(6).reshape(3, 2), np.arange(6).reshape(3, 2) + 100
    x = np.arange(9, dtype="f4").reshape(3, 3)
    for rows in (3, 1, 2):
        assert staged.fill(rows, a=a[:rows], b=b[:rows], x=x[:rows]) == 0
        for name, value in (("a", a), ("b", b), ("x", x)):
            np.testing.assert_array_equal(staged.views[name][:rows], value[:rows])
            for row in staged.views[name][rows:]:
                np.testing.assert_array_equal(row, value[0])


@pytest.mark.parametrize("rows", [3, 4])
def test_a_block_takes_lists_too(rows: int) -> None:
    made = bucket(4, [("a", "int64", (2,)), ("b", "int64", (2,))], staged=2)
    staged = Staged(made, [])
    a, b = np.arange(8).reshape(4, 2)[:rows], np.arange(8).reshape(4, 2)[:rows] + 100
    assert staged.fill(rows, a=a.tolist(), b=b.tolist()) == 0
    for name, value in (("a", a), ("b", b)):
        np.testing.assert_array_equal(staged.views[name][:rows], value)


def test_neighbours_of_one_shape_are_one_block() -> None:
    made = bucket(
        2,
        [
            ("a", "int64", (3,)),
            ("b", "int64", (3,)),
            ("c", "int64", (5,)),
            ("d", "int64", (5,)),
            ("x", "float32", (3,)),
            ("y", "float32", (3,)),
        ],
        staged=4,
    )
    names = [[slot.name for slot in block] for block in blocks(made)]
    assert names == [["a", "b"], ["c", "d"], ["x"], ["y"]]


def test_buckets_that_lay_their_inputs_out_differently_take_the_same_request() -> None:
    """Rewrites are chosen for each bucket, and what is staged together is theirs to say."""
    row = ("int64", (2,))
    first = bucket(2, [("x", *row), ("a", *row), ("b", *row), ("c", *row)])
    second = bucket(2, [("c", *row), ("a", *row), ("b", *row), ("x", *row)], staged=2)
    third = bucket(2, [("b", *row), ("c", *row), ("a", *row), ("x", *row)], staged=3)
    order = filling_order([first, second, third])
    assert order == [("x", False), ("a", False), ("b", False), ("c", False)]
    assert filling_order([third, second]) == [("b", False), ("c", True), ("a", True), ("x", False)]
    values = {name: np.arange(4).reshape(2, 2) + 10 * i for i, name in enumerate("xabc")}
    names = [name for name, _ in order]
    for made in (first, second, third):
        memory = np.zeros(total_bytes(made.inputs), dtype=np.uint8)
        filler = Filler(made, names, [], memory, "error")
        for rows in (2, 1):
            filler.prepare(rows)([values[name][:rows] for name in names])
            for slot in made.inputs:
                np.testing.assert_array_equal(slot.view(memory)[:rows], values[slot.name][:rows])


@pytest.mark.parametrize("bad", [np.zeros((2, 3), "i8"), np.zeros((2, 2), "i4"), [[0.5] * 2] * 2])
def test_a_block_takes_its_own_dtype_and_shape_alone(bad: Any) -> None:
    staged = Staged(bucket(2, [("a", "int64", (2,)), ("b", "int64", (2,))], staged=2), [])
    with pytest.raises((TypeError, ValueError)):
        staged.fill(2, a=np.zeros((2, 2), "i8"), b=bad)


COLUMNS = [IdBound("m", 0, 5, "first"), IdBound("m", 2, 9, "third")]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([4, 99, 8], None),
        ([0, -99, 0], None),
        ([5, 0, 0], r"^input 'm' column 0, row 1: id 5(\.0)? is out of range; table 'first' has 5"),
        ([0, 0, 9], r"^input 'm' column 2, row 1: id 9(\.0)? is out of range; table 'third' has 9"),
        ([0, 0, -1], r"^input 'm' column 2, row 1: id -1(\.0)? is out of range; table 'third'"),
    ],
)
def test_columns_are_checked_by_themselves(dtype: str, row: list[int], problem: str | None) -> None:
    staged = Staged(bucket(4, [("m", dtype, (3,))]), COLUMNS)
    values = np.array([[1, 1, 1], row], dtype=dtype)
    if problem is None:
        assert staged.fill(2, m=values) == 0
    else:
        with pytest.raises(IdRangeError, match=problem):
            staged.fill(2, m=values)


@pytest.mark.parametrize(
    ("dtype", "rows", "good", "bad"),
    [
        ("uint8", 1000, [0, 255], []),
        ("uint8", 255, [254], [255]),
        ("int8", 1000, [0, 127], [-1, -128]),
        ("int8", 100, [99], [100, 127, -1]),
        ("int16", 100_000, [32767], [-1, -32768]),
        ("int32", 2**31, [2**31 - 1], [-1]),
        ("int64", 5, [4], [5, 2**62, -1, -(2**63)]),
        ("float32", 5, [4, 4.5], [5, -1, np.nan, np.inf]),
        ("bool", 2, [0, 1], []),
        ("bool", 1, [0], [1]),
    ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_every_dtype_has_its_bounds(
    dtype: str, rows: int, good: list[Any], bad: list[Any], size: int
) -> None:
    staged = Staged(bucket(size, [("a", dtype, ())]), [IdBound("a", None, rows, "t")])
    for value in good:
        assert staged.fill(1, a=np.array([value], dtype=dtype)) == 0
    for value in bad:
        with pytest.raises(IdRangeError, match=r"^input 'a', row 0: id .* is out of range; table"):
            staged.fill(1, a=np.array([value], dtype=dtype))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("width", [1, 3000])
def test_neighbours_have_limits_of_their_own(dtype: str, width: int) -> None:
    """Also one that their dtype cannot hold; few ids are compared otherwise than many."""
    made = bucket(1, [("a", dtype, (width,)), ("b", dtype, (width,))], staged=2)
    staged = Staged(made, [IdBound("a", None, 70_000, "t"), IdBound("b", None, 4, "u")])
    most = min(np.iinfo(dtype).max, 69_999)
    a, b = np.full((1, width), most, dtype), np.full((1, width), 3, dtype)
    assert staged.fill(1, a=a, b=b) == 0
    b[0, -1] = 4
    message = rf"^input 'b', row 0, position {width - 1}: id 4 is out of range; table 'u' has 4"
    with pytest.raises(IdRangeError, match=message):
        staged.fill(1, a=a, b=b)


def test_ids_left_in_the_padding_by_a_larger_request_are_not_checked() -> None:
    staged = Staged(bucket(4, [("a", "int64", ())]), [IdBound("a", None, 5, "t")], "error")
    with pytest.raises(IdRangeError):
        staged.fill(4, a=np.array([0, 1, 2, 77]))
    assert staged.fill(2, a=np.array([3, 4])) == 0
    np.testing.assert_array_equal(staged.views["a"], [3, 4, 3, 3])


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.integers(1, 5))
    rows = draw(st.integers(1, size))
    width = draw(st.sampled_from([(), (1,), (3,)]))
    features = draw(st.integers(1, 3))
    limits = [draw(st.integers(1, 6)) for _ in range(features)]
    ids = [
        np.array(
            draw(
                st.lists(
                    st.integers(-2, 7),
                    min_size=rows * (width or (1,))[0],
                    max_size=rows * (width or (1,))[0],
                )
            )
        ).reshape(rows, *width)
        for _ in range(features)
    ]
    return {"size": size, "rows": rows, "width": width, "limits": limits, "ids": ids}


@settings(deadline=None, max_examples=200)
@given(case=requests(), column=st.booleans())
def test_checks_find_exactly_the_ids_that_are_out_of_range(
    case: dict[str, Any], column: bool
) -> None:
    names = [f"f{i}" for i in range(len(case["ids"]))]
    made = bucket(case["size"], [(n, "int64", case["width"]) for n in names], staged=len(names))
    bounds = [
        IdBound(name, None, limit, "t") for name, limit in zip(names, case["limits"], strict=True)
    ]
    limits = [np.full(case["width"] or (1,), limit) for limit in case["limits"]]
    if column and case["width"]:  # the last column of the first input has a bound of its own
        bounds.append(IdBound(names[0], case["width"][0] - 1, 2, "t"))
        limits[0][-1] = min(limits[0][-1], 2)
    values = dict(zip(names, case["ids"], strict=True))
    bad = sum(
        int(((ids.reshape(case["rows"], -1) < 0) | (ids.reshape(case["rows"], -1) >= most)).sum())
        for ids, most in zip(case["ids"], limits, strict=True)
    )
    checked = Staged(made, bounds)
    if bad:
        with pytest.raises(IdRangeError):
            checked.fill(case["rows"], **values)
    else:
        assert checked.fill(case["rows"], **values) == 0
    clamping = Staged(made, bounds, "clamp")
    counted = clamping.fill(case["rows"], **values)
    assert (counted > 0) == (bad > 0)
    for name, most in zip(names, limits, strict=True):
        expected = np.clip(values[name].reshape(case["rows"], -1), 0, most - 1)
        got = clamping.views[name].reshape(case["size"], -1)
        np.testing.assert_array_equal(got[: case["rows"]], expected)
        assert (got[case["rows"] :] == got[0]).all()
    off = Staged(made, bounds, "off")
    assert off.fill(case["rows"], **values) == 0
    for name in names:
        np.testing.assert_array_equal(off.views[name][: case["rows"]], values[name])
