"""Filling staging memory: copies, padding and id checks of one bucket."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filling import Staged, at_odd_bytes, bucket, load_sharing
from hypothesis import given, settings
from hypothesis import strategies as st

from recreplay.capture.compilers.c_library import build_c_library
from recreplay.runtime.blocks import blocks
from recreplay.runtime.errors import IdRangeError
from recreplay.runtime.fill import Fill, Filler
from recreplay.runtime.native_fill import FillLibrary, NativeFill, load_fill_library
from recreplay.runtime.spec import DTYPES, IdBound, InputSpec, total_bytes
from recreplay.runtime.tensor_exchange import tensor_reader


@pytest.fixture(autouse=True, scope="module", params=["numpy", "library", "helpers"])
def copying(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Requests are copied by numpy, by the library that capture compiles, or by several threads of
    it."""
    Staged.library = None
    if request.param == "numpy":
        yield
        return
    folder = tmp_path_factory.mktemp("library")
    if request.param == "library":
        build_c_library("fill.c", folder / "fill.so")
        Staged.library = load_fill_library(folder / "fill.so")
    else:
        Staged.library = load_sharing(folder)
    assert Staged.library is not None
    yield
    Staged.library.close()


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
    values = {name: np.arange(4).reshape(2, 2) + 10 * i for i, name in enumerate("xabc")}
    names = list("axcb")
    for made in (first, second, third):
        memory = np.zeros(total_bytes(made.inputs), dtype=np.uint8)
        specs = [InputSpec(name, *row) for name in names]
        filler = Filler(made, specs, [], memory, "error", Staged.library)
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
    leasts = [draw(st.integers(0, min(2, limit - 1))) for limit in limits]
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
    found = {"size": size, "rows": rows, "width": width, "limits": limits, "ids": ids}
    return {**found, "leasts": leasts}


@settings(deadline=None, max_examples=200)
@given(case=requests(), column=st.booleans())
def test_checks_find_exactly_the_ids_that_are_out_of_range(
    case: dict[str, Any], column: bool
) -> None:
    names = [f"f{i}" for i in range(len(case["ids"]))]
    made = bucket(case["size"], [(n, "int64", case["width"]) for n in names], staged=len(names))
    bounds = [
        IdBound(name, None, limit, "t", least)
        for name, limit, least in zip(names, case["limits"], case["leasts"], strict=True)
    ]
    limits = [np.full(case["width"] or (1,), limit) for limit in case["limits"]]
    if column and case["width"]:  # the last column of the first input has a bound of its own
        most = case["leasts"][0] + 1
        bounds.append(IdBound(names[0], case["width"][0] - 1, most, "t"))
        limits[0][-1] = min(limits[0][-1], most)
    values = dict(zip(names, case["ids"], strict=True))
    flat = [ids.reshape(case["rows"], -1) for ids in case["ids"]]
    bad = sum(
        int(((ids < least) | (ids >= most)).sum())
        for ids, most, least in zip(flat, limits, case["leasts"], strict=True)
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
    for name, most, least in zip(names, limits, case["leasts"], strict=True):
        expected = np.clip(values[name].reshape(case["rows"], -1), least, most - 1)
        got = clamping.views[name].reshape(case["size"], -1)
        np.testing.assert_array_equal(got[: case["rows"]], expected)
        assert (got[case["rows"] :] == got[0]).all()
    off = Staged(made, bounds, "off")
    assert off.fill(case["rows"], **values) == 0
    for name in names:
        np.testing.assert_array_equal(off.views[name][: case["rows"]], values[name])


def test_the_library_takes_rows_that_lie_apart() -> None:
    """Columns of one matrix, rows backwards, a row repeated, and a matrix turned round."""
    made = bucket(8, [("a", "int64", ()), ("m", "float32", (3,))])
    staged = Staged(made, [IdBound("a", None, 50, "t")])
    wide = np.arange(40).reshape(5, 8)
    rows = np.arange(30, dtype="f4").reshape(5, 6)
    for a, m in [
        (wide[:, 3], rows[:, 1:4]),
        (wide[::-1, 0], rows[::-1, :3]),
        (np.broadcast_to(np.int64(7), (5,)), np.broadcast_to(rows[:1, :3], (5, 3))),
        (wide[:, 1], rows[:, ::2]),
        (wide[:, 1], np.asfortranarray(rows[:, :3])),
    ]:
        assert staged.fill(5, a=a, m=m) == 0
        for name, value in (("a", a), ("m", m)):
            np.testing.assert_array_equal(staged.views[name][:5], value)
            assert (staged.views[name][5:] == value[0]).all()
    with pytest.raises(IdRangeError, match=r"^input 'a', row 2: id 99 is out of range; table 't'"):
        staged.fill(5, a=np.array([[1, 2, 99, 3, 4]] * 2).T[:, 1], m=rows[:, :3])


def test_long_requests_are_copied_without_the_interpreter_lock() -> None:
    made = bucket(300, [("a", "int64", (40,)), ("b", "int64", (40,))], staged=2)
    staged = Staged(made, [IdBound(name, None, 20_000, "t") for name in "ab"])
    a = np.arange(257 * 40).reshape(257, 40)
    assert staged.fill(257, a=a, b=a + 1) == 0
    for name, value in (("a", a), ("b", a + 1)):
        np.testing.assert_array_equal(staged.views[name][:257], value)
        assert (staged.views[name][257:] == value[0]).all()
    a[256, 39] = 20_000
    with pytest.raises(IdRangeError, match=r"^input 'b', row 256, position 39: id 20000 is out"):
        staged.fill(257, a=np.maximum(a - 1, 0), b=a)


def test_a_request_in_staging_is_padded_and_checked() -> None:
    made = bucket(4, [("a", "int64", ()), ("b", "int32", (2,))])
    staged = Staged(made, [IdBound("a", None, 5, "t"), IdBound("b", None, 9, "u")])
    fill = staged.filler.prepare(3).lend((staged.views["a"][:3], staged.views["b"][:3]))
    staged.views["a"][:] = [1, 2, 4, 99]
    staged.views["b"][:] = [[1, 2], [3, 4], [5, 8], [-1, -1]]
    assert fill() == 0
    np.testing.assert_array_equal(staged.views["a"], [1, 2, 4, 1])
    np.testing.assert_array_equal(staged.views["b"][3], [1, 2])
    staged.views["b"][2, 1] = -1
    with pytest.raises(IdRangeError, match=r"^input 'b', row 2, position 1: id -1 is out of range"):
        fill()


@pytest.mark.parametrize("size", [3, 5])
def test_the_library_takes_wider_ids_where_a_table_bounds_them(size: int) -> None:
    """Whole, as columns of a matrix, and backwards; beside ids of 32 bits."""
    made = bucket(size, [("a", "int32", (20,)), ("b", "int32", ()), ("c", "int32", ())], staged=1)
    staged = Staged(made, [IdBound(name, None, 1000, name) for name in "ab"])
    if Staged.library is None:
        pytest.skip("numpy takes what the checker has narrowed")
    fill = staged.filler.prepare(3)
    matrix = np.arange(300).reshape(3, 100)
    c = np.arange(3, dtype=np.int32)
    for a, b in [
        (matrix[:, :20].copy(), matrix[:, 99]),
        (matrix[:, 40:60], matrix[::-1, 0]),
        (matrix[:, :20].astype(np.int32), matrix[:, 7]),
        (torch.from_numpy(matrix)[:, 5:25], torch.arange(3)),
    ]:
        assert fill([a, b, c]) == 0
        assert getattr(fill, "_other", None) is None
        for name, value in (("a", a), ("b", b), ("c", c)):
            np.testing.assert_array_equal(staged.views[name][:3], np.asarray(value))
            assert (staged.views[name][3:] == staged.views[name][0]).all()


@pytest.mark.parametrize("check", ["error", "off"])
def test_ids_are_narrowed_as_they_are_copied(check: Any) -> None:
    """Whole inputs and such whose columns have tables of their own, whether or not it is asked
    that tables have them."""
    made = bucket(5, [("a", "int32", (20,)), ("m", "int32", (2,)), ("x", "float32", ())])
    bounds = [IdBound("a", None, 1000, "t"), IdBound("m", 0, 7, "u"), IdBound("m", 1, 9, "v")]
    staged = Staged(made, bounds, check, wide="am")
    fill = staged.filler.prepare(3)
    a, m, x = np.arange(60).reshape(3, 20), np.array([[0, 8], [6, 0], [1, 1]]), np.zeros(3, "f4")
    for ids, columns in ((a, m), (a[::-1, ::-1], m[::-1]), (a.astype("i4"), m.astype("i4"))):
        assert fill([ids, columns, x]) == 0
        np.testing.assert_array_equal(staged.views["a"][:3], ids)
        np.testing.assert_array_equal(staged.views["m"], [*columns, columns[0], columns[0]])
    fill = staged.filler.prepare(3)
    assert fill([a, m, x]) == 0
    assert getattr(fill, "_other", None) is None  # the library by itself
    bad = np.where(m == 8, 2**32 + 3, m)
    with pytest.raises(IdRangeError, match=r"^input 'm' column 1, row 10: id 4294967299 is out of"):
        fill([a, bad, x], 10)
    below = np.where(m == 8, -1, m)
    if check == "off":  # it fits, and the caller is trusted
        assert fill([a, below, x]) == 0
        assert staged.views["m"][0, 1] == -1
    else:
        with pytest.raises(IdRangeError, match=r"^input 'm' column 1, row 0: id -1 is out of"):
            fill([a, below, x])
    with pytest.raises(ValueError, match="shape"):
        Fill(staged.filler, 3)([a[:, :19], m, x])


@pytest.mark.parametrize(
    ("rows", "ids"),
    [
        (1000, [1, 1000, 0]),
        (1000, [-1, 0, 0]),
        (1000, [2**32 + 5, 0, 0]),  # would be 5
        (2**31 + 8, [2**31, 0, 1]),  # in the table, and beyond 32 bits
        (None, [0, 1, 2]),
    ],
)
def test_ids_that_may_not_fit_are_left_to_be_converted(rows: int | None, ids: list[int]) -> None:
    made = bucket(4, [("a", "int32", ())])
    bounds = [] if rows is None else [IdBound("a", None, rows, "t")]
    staged = Staged(made, bounds)
    with pytest.raises(TypeError):
        staged.fill(3, a=np.array(ids))


@pytest.mark.parametrize("ids", [[3, 1, 999], [3, 1000, 1]])
def test_wider_ids_are_taken_from_wherever_they_are(ids: list[int]) -> None:
    """At odd bytes, in a message, and among other things, in an array of records."""
    staged = Staged(bucket(4, [("a", "int32", ())]), [IdBound("a", None, 1000, "t")])
    records = np.zeros(3, [("tag", "u1"), ("id", "i8")])
    records["id"] = ids
    for values in (at_odd_bytes(np.array(ids)), records["id"]):
        assert not values.flags.aligned
        if max(ids) == 1000 or Staged.library is None:
            with pytest.raises(TypeError):
                staged.fill(3, a=values)
        else:
            assert staged.fill(3, a=values) == 0
            assert staged.views["a"].tolist() == [3, 1, 999, 3]


@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize("aligned", [True, False])
def test_ids_of_long_requests_are_copied_and_found_wherever_they_are(
    dtype: str, aligned: bool
) -> None:
    """The library copies them piece by piece."""
    rows, width = 701, 3
    ids = rows * width
    staged = Staged(bucket(rows + 2, [("a", dtype, (width,))]), [IdBound("a", None, ids, "t")])
    raw = np.zeros(ids * 8 + 1, dtype="u1")[not aligned :]
    values = raw[: ids * DTYPES[dtype].itemsize].view(dtype).reshape(rows, width)
    values[:] = np.arange(ids).reshape(rows, width)
    assert staged.fill(rows, a=values) == 0
    np.testing.assert_array_equal(staged.views["a"][:rows], values)
    np.testing.assert_array_equal(staged.views["a"][rows:], [[0, 1, 2]] * 2)
    for at in (0, 255, 256, 511, 512, 1023, 1024, ids - 1):
        row, column = divmod(at, width)
        values[row, column] = ids
        problem = rf"^input 'a', row {row}, position {column}: id {ids} is out of range"
        with pytest.raises(IdRangeError, match=problem):
            staged.fill(rows, a=values)
        values[row, column] = at


def test_long_requests_of_wider_ids_are_left_to_be_converted_wherever_one_does_not_fit() -> None:
    rows = 2000
    staged = Staged(bucket(rows, [("a", "int32", ())]), [IdBound("a", None, rows, "t")])
    if Staged.library is None:
        pytest.skip("numpy takes what the checker has narrowed")
    values = np.arange(rows)
    assert staged.fill(rows, a=values) == 0
    np.testing.assert_array_equal(staged.views["a"], values)
    for at in (0, 511, 512, 1023, 1024, rows - 1):
        values[at] = 2**32
        with pytest.raises(TypeError):
            staged.fill(rows, a=values)
        values[at] = at


def test_arrays_that_were_pickled_are_taken_at_once() -> None:
    """They have a dtype of their own, equal to the staged one. A swapped one is another."""
    staged = Staged(bucket(2, [("a", "int64", ())]), [])
    fill = staged.filler.prepare(2)
    given = pickle.loads(pickle.dumps(np.array([3, 4])))
    assert given.dtype is not np.dtype("int64")
    assert fill([given]) == 0
    np.testing.assert_array_equal(staged.views["a"], [3, 4])
    assert getattr(fill, "_other", None) is None
    with pytest.raises(TypeError):
        fill([np.array([3, 4]).astype(">i8")])


def test_the_library_is_used_where_there_is_one() -> None:
    filler = Staged(bucket(2, [("a", "int64", ())]), []).filler
    assert isinstance(filler.prepare(1), NativeFill) == (Staged.library is not None)


def test_a_library_that_cannot_read_arrays_is_not_used(tmp_path: Path) -> None:
    """As where an interpreter lays objects out in another way."""
    assert load_fill_library(tmp_path / "none.so") is None
    path = tmp_path / "fill.so"
    build_c_library("fill.c", path)
    library = FillLibrary(path)
    assert library.reads_arrays()
    reads = library._reads
    library._reads = lambda probe, kind, data, *rest: reads(probe, kind, data + 8, *rest)
    assert not library.reads_arrays()


@st.composite
def laid_out(draw: st.DrawFn) -> dict[str, Any]:
    """A bucket of inputs of any dtype and shape, and a request whose arrays lie in any way."""
    size = draw(st.integers(1, 6))
    rows = draw(st.integers(1, size))
    draws = draw(st.randoms(use_true_random=False))
    inputs: list[tuple[str, str, tuple[int, ...]]] = []
    values: dict[str, np.ndarray[Any, Any]] = {}
    bounds: list[IdBound] = []
    for i in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        row = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
        shape = (rows, *row)
        steps = [draw(st.sampled_from([1, 1, 2, 3, -1])) for _ in shape]
        order = draw(st.permutations(range(len(shape))))
        room = [d * abs(s) for d, s in zip(shape, steps, strict=True)]
        base = np.empty([room[k] for k in order], DTYPES[dtype]).transpose(np.argsort(order))
        value = base[tuple(slice(None, None, s) for s in steps)]
        value[...] = (
            np.array([draws.randrange(-1, 6) for _ in range(value.size)], "i8")
            .reshape(shape)
            .astype(DTYPES[dtype])
        )
        name = f"x{i}"
        inputs.append((name, dtype, row))
        values[name] = value
        if DTYPES[dtype].kind in "iu" and draw(st.booleans()):
            least = draw(st.sampled_from([0, 0, 0, 1]))
            bounds.append(IdBound(name, None, draw(st.integers(2, 300)), f"t{i}", least))
    # Torch has no strides below zero. Numpy takes what the library leaves, and no tensors at all.
    dense = all(a.flags.c_contiguous or a[0].flags.c_contiguous for a in values.values())
    turned = {name for name, a in values.items() if min(a.strides) < 0}
    tensors = [n for n in values if n not in turned and draw(st.booleans())] if dense else []
    return {
        **{"bucket": bucket(size, inputs), "rows": rows, "values": values, "bounds": bounds},
        "tensors": tensors,
    }


@settings(deadline=None, max_examples=400)
@given(case=laid_out())
def test_arrays_of_any_layout_are_filled_as_numpy_would(case: dict[str, Any]) -> None:
    staged = Staged(case["bucket"], case["bounds"])
    given_ = dict(case["values"])
    if Staged.library is not None and tensor_reader() is not None:
        for name in case["tensors"]:
            given_[name] = torch.from_numpy(given_[name])
    bad = [
        b.input
        for b in case["bounds"]
        if ((case["values"][b.input] < b.least) | (case["values"][b.input] >= b.rows)).any()
    ]
    if bad:
        with pytest.raises(IdRangeError, match=rf"^input '{bad[0]}'"):
            staged.fill(case["rows"], **given_)
        return
    assert staged.fill(case["rows"], **given_) == 0
    for name, value in case["values"].items():
        view = staged.views[name]
        np.testing.assert_array_equal(view[: case["rows"]], value)
        for row in view[case["rows"] :]:
            np.testing.assert_array_equal(row, value[0])


@pytest.mark.parametrize(
    ("dtype", "ids", "rows", "clamped"),
    [
        ("bool", [False, True, True], 1, [0, 0, 0]),
        ("float16", [2050.0, 2052.0, -1.0], 2052, [2050, 2050, 0]),  # every second one from 2048
        ("float32", [3e7, float("nan"), 5.0], 16_777_220, [16_777_218, 0, 5]),
    ],
)
def test_ids_are_clamped_to_a_row_that_their_dtype_has(
    dtype: str, ids: list[float], rows: int, clamped: list[int]
) -> None:
    staged = Staged(bucket(4, [("a", dtype, (1,))]), [IdBound("a", 0, rows, "t")], "clamp")
    assert staged.fill(3, a=np.array(ids, dtype).reshape(3, 1)) == 2
    np.testing.assert_array_equal(staged.views["a"].ravel(), [*clamped, clamped[0]])


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "float32"])
def test_ids_may_begin_later_than_at_0(dtype: str) -> None:
    """As lengths do, of which the model takes 1 to find the last place."""
    bounds = [IdBound("a", None, 6, "t", 1), IdBound("b", None, 6, "t")]
    given_ = {name: np.array([1, 5, 2], dtype) for name in "ab"}
    for check, wrong in itertools.product(("error", "clamp"), (0, 6)):
        staged = Staged(bucket(4, [("a", dtype, ()), ("b", dtype, ())], staged=2), bounds, check)
        assert staged.fill(3, **given_) == 0
        bad = {**given_, "a": np.array([1, wrong, 2], dtype)}
        if check == "error":
            message = (
                rf"^input 'a', row 1: id {wrong}(\.0)? is out of range; table 't' has 5 rows, "
                r"counted from 1, so ids are 1 to 5$"
            )
            with pytest.raises(IdRangeError, match=message):
                staged.fill(3, **bad)
        else:
            assert staged.fill(3, **bad) == 1
            assert int(staged.views["a"][1]) in (1, 5)
            assert (wrong == 0) == (int(staged.views["a"][1]) == 1)
