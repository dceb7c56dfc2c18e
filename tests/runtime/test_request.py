"""Every wrong request is refused with what is wrong; everything array-like is understood."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recreplay.runtime import InputError, Runtime
from recreplay.runtime.errors import (
    EmptyBatchError,
    IdRangeError,
    InputDtypeError,
    InputNameError,
    InputShapeError,
    InputTypeError,
    RecReplayError,
    ReplayError,
)


@pytest.fixture(scope="module", params=["int64", "int32"])
def shop_path(request: pytest.FixtureRequest, shop_path: Path, narrow_path: Path) -> Path:
    """Ids are staged as requests have them, or narrower."""
    return narrow_path if request.param == "int32" else shop_path


@pytest.fixture(scope="module")
def runtime(shop_path: Path) -> Iterator[Runtime]:
    with Runtime.load(shop_path) as loaded:
        yield loaded


def counters(runtime: Runtime) -> dict[str, Any]:
    """What a runtime counts of requests; of its queue and lanes, other tests ask."""
    stats = runtime.stats()
    return {k: v for k, v in stats.items() if k not in ("queue", "lanes", "refreshes")}


def same(runtime: Runtime, shop: Any, request: dict[str, Any], plain: dict[str, Any]) -> None:
    """The answer to `request` is what eager says to `plain`."""
    expected = shop.answer(plain)
    got = runtime.run(request)
    assert list(got) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


def refuse(runtime: Runtime, shop: Any, request: Any, kind: type[InputError], text: str) -> None:
    """Refused with exactly this message, counted, and the next request is answered."""
    failed = runtime.stats()["failed"]
    with pytest.raises(kind, match=f"^{re.escape(text)}$") as caught:
        runtime.run(request)
    assert isinstance(caught.value, RecReplayError)
    assert runtime.stats()["failed"] == failed + 1
    good = shop.request(3, seed=9)
    same(runtime, shop, good, good)


# Names

NAMES = "expected dense, ids_0, ids_1, tag, mixed"


@pytest.mark.parametrize(
    ("drop", "add", "problem"),
    [
        (["dense"], [], "missing dense"),
        (["ids_0", "tag"], [], "missing ids_0, tag"),
        ([], ["extra"], "unknown extra"),
        (["tag"], ["tags"], "missing tag; unknown tags"),
        ([], [7], "unknown 7"),
    ],
)
def test_wrong_names(
    runtime: Runtime, shop: Any, drop: list[str], add: list[Any], problem: str
) -> None:
    request = {k: v for k, v in shop.request(2).items() if k not in drop}
    request |= {k: np.zeros(2) for k in add}
    text = f"inputs do not match the model: {problem}; {NAMES}"
    refuse(runtime, shop, request, InputNameError, text)


@pytest.mark.parametrize("request_", [[1, 2], None, "dense", 3.5])
def test_a_request_that_is_no_dict(runtime: Runtime, shop: Any, request_: Any) -> None:
    text = f"a request is a dict of arrays by input name; got {type(request_).__name__}"
    refuse(runtime, shop, request_, InputTypeError, text)


# Values


@pytest.mark.parametrize(
    ("name", "change", "kind", "text"),
    [
        (
            "dense",
            lambda a: a.astype("f8"),
            InputDtypeError,
            "input 'dense' has dtype float64; expected float32, or one that widens to it without "
            "loss; convert it with .astype('float32')",
        ),
        (
            "tag",
            lambda a: a.astype("u4"),
            InputDtypeError,
            "input 'tag' has dtype uint32; expected int32, or one that widens to it without loss; "
            "convert it with .astype('int32')",
        ),
        (
            "ids_1",
            lambda a: a.astype("u8"),
            InputDtypeError,
            "input 'ids_1' has dtype uint64; expected int64, or one that widens to it without "
            "loss; convert it with .astype('int64')",
        ),
        (
            "ids_0",
            lambda a: a.astype("f4"),
            InputDtypeError,
            "input 'ids_0' has dtype float32; expected int64, or one that widens to it without "
            "loss; convert it with .astype('int64')",
        ),
        (
            "dense",
            lambda a: a.astype("i2"),
            InputDtypeError,
            "input 'dense' has dtype int16; expected float32, or one that widens to it without "
            "loss; convert it with .astype('float32')",
        ),
        (
            "ids_0",
            lambda a: a > 3,
            InputDtypeError,
            "input 'ids_0' has dtype bool; expected int64, or one that widens to it without loss; "
            "convert it with .astype('int64')",
        ),
        (
            "dense",
            lambda a: a[:, 0],
            InputShapeError,
            "input 'dense' has shape (3,); expected float32[n, 4]",
        ),
        (
            "dense",
            lambda a: a[None],
            InputShapeError,
            "input 'dense' has shape (1, 3, 4); expected float32[n, 4]",
        ),
        (
            "dense",
            lambda a: np.float32(1),
            InputShapeError,
            "input 'dense' has shape (); expected float32[n, 4]",
        ),
        (
            "tag",
            lambda a: a[:, None],
            InputShapeError,
            "input 'tag' has shape (3, 1); expected int32[n]",
        ),
        (
            "ids_0",
            lambda a: a[:, :2],
            InputShapeError,
            "input 'ids_0' has shape (3, 2); expected int64[n, 3]",
        ),
        (
            "ids_1",
            lambda a: a.reshape(-1),
            InputShapeError,
            "input 'ids_1' has shape (9,); expected int64[n, 3]",
        ),
        (
            "mixed",
            lambda a: np.concatenate([a, a], axis=1),
            InputShapeError,
            "input 'mixed' has shape (3, 6); expected float32[n, 3]",
        ),
        (
            "ids_1",
            lambda a: a[:2],
            InputShapeError,
            "input 'ids_1' has 2 rows, but input 'dense' has 3; all inputs of a request need the "
            "same number of rows",
        ),
        (
            "dense",
            lambda a: a[:1],
            InputShapeError,
            "input 'ids_0' has 3 rows, but input 'dense' has 1; all inputs of a request need the "
            "same number of rows",
        ),
        (
            "dense",
            lambda a: a.astype("U8"),
            InputTypeError,
            "input 'dense' is an array of dtype <U8; expected an array float32[n, 4]",
        ),
        (
            "ids_0",
            lambda a: a.astype(object),
            InputTypeError,
            "input 'ids_0' is an array of dtype object; expected an array int64[n, 3]",
        ),
        (
            "tag",
            lambda a: None,
            InputTypeError,
            "input 'tag' is a NoneType of dtype object; expected an array int32[n]",
        ),
        (
            "tag",
            lambda a: "123",
            InputTypeError,
            "input 'tag' is a str of dtype <U3; expected an array int32[n]",
        ),
        (
            "dense",
            lambda a: a.astype("c8"),
            InputTypeError,
            "input 'dense' is an array of dtype complex64; expected an array float32[n, 4]",
        ),
        (
            "tag",
            lambda a: np.array(["2020-01-01"] * 3, dtype="M8[D]"),
            InputTypeError,
            "input 'tag' is an array of dtype datetime64[D]; expected an array int32[n]",
        ),
        (
            "ids_0",
            lambda a: [[0.5] * 3] * 3,
            InputDtypeError,
            "input 'ids_0' has dtype float64; expected int64, or one that widens to it without "
            "loss; convert it with .astype('int64')",
        ),
        (
            "tag",
            lambda a: [1, 2, 2**32 + 3],  # would wrap to 3
            IdRangeError,
            "input 'tag', row 2: id 4294967299 is out of range; table 'tag.weight' has 9 rows, so "
            "ids are 0 to 8",
        ),
    ],
)
def test_wrong_values(
    runtime: Runtime,
    shop: Any,
    name: str,
    change: Callable[[Any], Any],
    kind: type[InputError],
    text: str,
) -> None:
    request = shop.request(3)
    request[name] = change(request[name])
    refuse(runtime, shop, request, kind, text)


def test_ragged_lists_are_refused(runtime: Runtime, shop: Any) -> None:
    request = {**shop.request(2), "ids_0": [[1, 2, 3], [1, 2]]}
    with pytest.raises(
        InputTypeError, match=r"^input 'ids_0' is a list that is no array \(.*\); ex"
    ):
        runtime.run(request)


def test_all_inputs_too_narrow_alike_are_refused(runtime: Runtime, shop: Any) -> None:
    request = shop.request(3)
    request |= {k: request[k][:, :2] for k in ("ids_0", "ids_1")}
    text = "input 'ids_0' has shape (3, 2); expected int64[n, 3]"
    refuse(runtime, shop, request, InputShapeError, text)


def test_an_empty_batch_is_refused(runtime: Runtime, shop: Any) -> None:
    request = {k: v[:0] for k, v in shop.request(2).items()}
    text = "the request has no rows; expected 1 or more"
    refuse(runtime, shop, request, EmptyBatchError, text)


def test_messages_of_split_requests_speak_of_the_whole(runtime: Runtime, shop: Any) -> None:
    request = shop.request(20)
    request["ids_1"] = request["ids_1"][:, :2]
    text = "input 'ids_1' has shape (20, 2); expected int64[n, 3]"
    refuse(runtime, shop, request, InputShapeError, text)


# Ids


@pytest.mark.parametrize(
    ("name", "place", "bad", "text"),
    [
        (
            "ids_0",
            (1, 2),
            50,
            "input 'ids_0', row 1, position 2: id 50 is out of range; table 'shelf.weight' has 50 "
            "rows, so ids are 0 to 49",
        ),
        (
            "ids_1",
            (0, 0),
            -1,
            "input 'ids_1', row 0, position 0: id -1 is out of range; table 'aisle.weight' has 30 "
            "rows, so ids are 0 to 29",
        ),
        (
            "ids_1",
            (2, 1),
            -(2**63),
            f"input 'ids_1', row 2, position 1: id {-(2**63)} is out of range; table "
            "'aisle.weight' has 30 rows, so ids are 0 to 29",
        ),
        (
            "tag",
            (2,),
            9,
            "input 'tag', row 2: id 9 is out of range; table 'tag.weight' has 9 rows, so ids are 0 "
            "to 8",
        ),
        (
            "tag",
            (0,),
            -5,
            "input 'tag', row 0: id -5 is out of range; table 'tag.weight' has 9 rows, so ids are "
            "0 to 8",
        ),
        (
            "mixed",
            (1, 1),
            np.nan,
            "input 'mixed' column 1, row 1: id nan is out of range; table 'brand.weight' has 6 "
            "rows, so ids are 0 to 5",
        ),
        (
            "mixed",
            (2, 1),
            np.inf,
            "input 'mixed' column 1, row 2: id inf is out of range; table 'brand.weight' has 6 "
            "rows, so ids are 0 to 5",
        ),
        (
            "mixed",
            (0, 1),
            6,
            "input 'mixed' column 1, row 0: id 6.0 is out of range; table 'brand.weight' has 6 "
            "rows, so ids are 0 to 5",
        ),
    ],
)
@pytest.mark.parametrize("rows", [3, 8])
def test_ids_outside_their_table(
    runtime: Runtime, shop: Any, rows: int, name: str, place: Any, bad: Any, text: str
) -> None:
    request = shop.request(rows)
    request[name][place] = bad
    refuse(runtime, shop, request, IdRangeError, text)


def test_the_row_of_an_id_counts_from_the_start_of_a_split_request(
    runtime: Runtime, shop: Any
) -> None:
    request = shop.request(20)
    request["ids_0"][17, 1] = 99
    text = (
        "input 'ids_0', row 17, position 1: id 99 is out of range; table 'shelf.weight' has 50 "
        "rows, so ids are 0 to 49"
    )
    refuse(runtime, shop, request, IdRangeError, text)


def test_the_last_row_of_each_table_is_allowed(runtime: Runtime, shop: Any) -> None:
    request = shop.request(3)
    request["ids_0"][:] = 49
    request["ids_1"][:] = 29
    request["tag"][:] = 8
    request["mixed"][:, 1] = 5
    same(runtime, shop, request, request)


def test_values_beside_an_id_column_may_be_anything(runtime: Runtime, shop: Any) -> None:
    request = shop.request(3)
    request["mixed"][:, 0] = [-7, 1e20, np.inf]
    same(runtime, shop, request, request)


BAD = [
    ("ids_0", (1, 2), 77, 49),
    ("ids_1", (0, 0), -3, 0),
    ("tag", (0,), 100, 8),
    ("mixed", (2, 1), 6.5, 5),
    ("mixed", (0, 1), np.nan, 0),
    ("mixed", (1, 1), -np.inf, 0),
]


@pytest.mark.parametrize("rows", [3, 8, 20])
def test_clamping_counts_and_equals_eager_on_clamped_ids(
    shop_path: Path, shop: Any, rows: int
) -> None:
    request, clamped = shop.request(rows), shop.request(rows)
    for name, place, bad, nearest in BAD:
        request[name][place] = bad
        clamped[name][place] = nearest
    kept = {k: v.copy() for k, v in request.items()}
    with Runtime.load(shop_path, check="clamp") as runtime:
        same(runtime, shop, request, clamped)
        assert runtime.stats()["clamped_ids"] == len(BAD)
        same(runtime, shop, clamped, clamped)
        assert runtime.stats()["clamped_ids"] == len(BAD)
        assert runtime.stats()["failed"] == 0
    for name, value in kept.items():
        np.testing.assert_array_equal(request[name], value)  # the caller's arrays are untouched


def test_without_a_check_nothing_is_refused_or_clamped(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path, check="off") as runtime:
        request = shop.request(3)
        same(runtime, shop, request, request)
        request["mixed"][0, 1] = 50.0
        with pytest.raises(ReplayError, match=r"^replaying bucket 8 failed: .*out of range"):
            runtime.run(request)
        again = shop.request(3)
        same(runtime, shop, again, again)
        assert counters(runtime) | {"rows": 0} == {
            "requests": 2,
            "rows": 0,
            "failed": 1,
            "split_requests": 0,
            "portioned_requests": 0,
            "padded_rows": 10,
            "clamped_ids": 0,
            "capacity_moves": 0,
            "capacity_splits": 0,
            "replays": {8: 2},
        }


def test_an_unknown_check_is_refused(shop_path: Path) -> None:
    with pytest.raises(RecReplayError, match=r"^unknown check 'maybe'; expected one of error, cla"):
        Runtime.load(shop_path, check="maybe")  # type: ignore[arg-type]


# What is understood


class OnlyDlpack:
    """An array of another library, which knows DLPack and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class OnlyArray:
    """An object with `__array__` and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._array


def read_only(array: Any) -> Any:
    array = array.copy()
    array.setflags(write=False)
    return array


def strided(array: Any) -> Any:
    wide = np.zeros((array.shape[0] * 2, *array.shape[1:]), dtype=array.dtype)
    wide[::2] = array
    return wide[::2]


FORMS: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda a: a,
    "torch": torch.from_numpy,
    "lists": lambda a: a.tolist(),
    "tuples": lambda a: tuple(map(tuple, a)) if a.ndim == 2 else tuple(a.tolist()),
    "dlpack": OnlyDlpack,
    "__array__": OnlyArray,
    "read only": read_only,
    "strided": strided,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "column-major": np.asfortranarray,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("rows", [1, 3, 8, 20])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_array_is_understood(
    runtime: Runtime, shop: Any, form: str, rows: int
) -> None:
    plain = shop.request(rows, seed=rows)
    same(runtime, shop, {k: FORMS[form](v) for k, v in plain.items()}, plain)


@pytest.mark.parametrize("name", ["dense", "ids_0", "ids_1", "tag", "mixed"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_may_be_mixed_in_one_request(
    runtime: Runtime, shop: Any, form: str, name: str
) -> None:
    plain = shop.request(5, seed=4)
    same(runtime, shop, {**plain, name: FORMS[form](plain[name])}, plain)


@pytest.mark.parametrize(
    ("name", "narrow"),
    [
        ("ids_0", "int32"),
        ("ids_1", "uint8"),
        ("ids_0", "int8"),
        ("ids_1", "uint32"),
        ("tag", "int16"),
        ("tag", "uint16"),
        ("dense", "float16"),
        ("mixed", "float16"),
    ],
)
@pytest.mark.parametrize("rows", [3, 8, 20])
def test_narrow_dtypes_are_widened(
    runtime: Runtime, shop: Any, name: str, narrow: str, rows: int
) -> None:
    plain = shop.request(rows, seed=rows)
    request = {**plain, name: plain[name].astype(narrow)}
    plain = {**plain, name: request[name].astype(plain[name].dtype)}
    same(runtime, shop, request, plain)
    tensor = {**request, name: torch.from_numpy(request[name])}
    same(runtime, shop, tensor, plain)


def test_lists_of_whole_numbers_are_floats_where_floats_are_meant(
    runtime: Runtime, shop: Any
) -> None:
    plain = shop.request(2)
    plain["dense"] = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype="f4")
    same(runtime, shop, {**plain, "dense": [[1, 2, 3, 4], [5, 6, 7, 8]]}, plain)


def test_a_tensor_with_a_gradient_is_understood(runtime: Runtime, shop: Any) -> None:
    plain = shop.request(3)
    same(
        runtime,
        shop,
        {**plain, "dense": torch.from_numpy(plain["dense"]).requires_grad_()},
        plain,
    )


def test_a_tensor_that_numpy_cannot_hold_is_refused(runtime: Runtime, shop: Any) -> None:
    request = {**shop.request(3), "dense": torch.zeros(3, 4, dtype=torch.bfloat16)}
    with pytest.raises(InputTypeError, match=r"^input 'dense' is a Tensor that is no array \(.*"):
        runtime.run(request)


# Counting


def test_counters_say_what_happened(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path) as runtime:
        assert counters(runtime) == {
            "requests": 0,
            "rows": 0,
            "failed": 0,
            "split_requests": 0,
            "portioned_requests": 0,
            "padded_rows": 0,
            "clamped_ids": 0,
            "capacity_moves": 0,
            "capacity_splits": 0,
            "replays": {},
        }
        for rows in (1, 2, 3, 8, 9, 20):
            runtime.run(shop.request(rows))
        with pytest.raises(InputNameError):
            runtime.run({})
        assert counters(runtime) == {
            "requests": 6,
            "rows": 43,
            "failed": 1,
            "split_requests": 2,
            "portioned_requests": 0,
            "padded_rows": 1 + 0 + 5 + 0 + 1 + 4,
            "clamped_ids": 0,
            "capacity_moves": 0,
            "capacity_splits": 0,
            "replays": {2: 3, 8: 6},
        }


class Lists(list[Any]):
    """Somebody's sequence, whose length cannot be told."""

    def __len__(self) -> int:
        raise RuntimeError("no length")


@pytest.mark.parametrize(
    "request_",
    [np.zeros((4, 3)), torch.zeros(4, 3), np.zeros(3, [("dense", "f4")]), "dense", 3, None],
    ids=repr,
)
def test_requests_of_no_names_are_refused(runtime: Runtime, request_: Any) -> None:
    for use in (runtime.run, lambda given: runtime.submit(given).result(10)):
        with pytest.raises(InputTypeError, match=r"^a request is a dict of arrays by input name"):
            use(request_)


@pytest.mark.parametrize(
    "value",
    [torch.nn.Linear(1, 1), torch.dtype, {"a": 1}],
    ids=repr,
)
def test_what_is_no_array_is_refused(runtime: Runtime, shop: Any, value: Any) -> None:
    with pytest.raises(InputTypeError, match=r"^input 'dense' is a .*expected"):
        runtime.run({**shop.request(1), "dense": value})


def test_a_length_that_cannot_be_told(runtime: Runtime, shop: Any) -> None:
    request_ = shop.request(2)
    with pytest.raises(InputTypeError, match=r"^input 'dense' is a Lists"):
        runtime.run({**request_, "dense": Lists(request_["dense"])})


@pytest.mark.parametrize("kind", [np.ma.array, np.memmap, np.recarray])
def test_kinds_of_numpy_arrays_are_read_as_arrays(
    runtime: Runtime, shop: Any, tmp_path: Path, kind: Any
) -> None:
    request_ = shop.request(3)
    dense = request_["dense"]
    if kind is np.memmap:
        made = np.memmap(tmp_path / "dense", np.float32, "w+", shape=dense.shape)
        made[:] = dense
    elif kind is np.recarray:
        made = dense.view(np.recarray)
    else:
        made = kind(dense)
    for name, want in shop.answer(request_).items():
        got = runtime.run({**request_, "dense": made})[name]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_masked_values_are_refused(runtime: Runtime, shop: Any) -> None:
    request_ = shop.request(2)
    request_["tag"] = np.ma.array(request_["tag"], mask=[False, True])
    with pytest.raises(InputTypeError, match=r"^input 'tag' is a MaskedArray .*values are masked"):
        runtime.run(request_)
