"""Requests of torch's tensors: which are read in place, and which are left to be converted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from filling import Staged, bucket

from recreplay.capture.compilers.c_library import build_c_library
from recreplay.runtime import native_fill
from recreplay.runtime.errors import IdRangeError
from recreplay.runtime.fill import Check
from recreplay.runtime.manifest import Bucket
from recreplay.runtime.native_fill import FillLibrary, NativeFill
from recreplay.runtime.request import RequestChecker
from recreplay.runtime.spec import IdBound, InputSpec
from recreplay.runtime.tensor_exchange import tensor_reader


@pytest.fixture(autouse=True, scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FillLibrary]:
    if tensor_reader() is None:
        pytest.skip(f"torch {torch.__version__} has no exchange table of DLPack")
    path = tmp_path_factory.mktemp("library") / "fill.so"
    build_c_library("fill.c", path)
    Staged.library = FillLibrary(path)
    yield Staged.library
    Staged.library = None


def prepared(
    made: Bucket, rows: int, *bounds: IdBound, check: Check = "error"
) -> tuple[Staged, NativeFill]:
    staged = Staged(made, list(bounds), check)
    fill = staged.filler.prepare(rows)
    assert isinstance(fill, NativeFill)
    return staged, fill


def test_tensors_are_read_as_arrays_are() -> None:
    made = bucket(4, [("a", "int64", ()), ("x", "float32", (3,))])
    staged, fill = prepared(made, 2, IdBound("a", None, 50, "t"))
    matrix = torch.arange(12, dtype=torch.float32).view(2, 6)
    learned = torch.nn.functional.pad(matrix, (0, 1)).requires_grad_()
    for a, x in [
        (torch.tensor([3, 4]), matrix[:, :3]),
        (torch.arange(20).view(2, 10)[:, 7], matrix[:, 3:]),
        (torch.tensor([9]).expand(2), learned[:, 1:4]),
        (np.array([7, 8]), matrix[:1, :3].expand(2, 3)),
    ]:
        assert fill([a, x]) == 0
        np.testing.assert_array_equal(staged.views["a"][:2], np.asarray(a))
        np.testing.assert_array_equal(staged.views["x"][:2], x.detach().numpy())
        assert (staged.views["x"][2:] == staged.views["x"][0]).all()
    with pytest.raises(IdRangeError, match=r"^input 'a', row 1: id 50 is out of range; table 't'"):
        fill([torch.tensor([0, 50]), matrix[:, :3]])
    assert fill._other is None  # numpy was not asked


def test_ids_of_tensors_are_clamped_in_staging_alone() -> None:
    made = bucket(2, [("a", "int32", ())])
    staged, fill = prepared(made, 2, IdBound("a", None, 5, "t"), check="clamp")
    ids = torch.tensor([-1, 7], dtype=torch.int32)
    assert fill([ids]) == 2
    np.testing.assert_array_equal(staged.views["a"], [0, 4])
    assert ids.tolist() == [-1, 7]


class Named(torch.Tensor):
    """A class of its own, which may do with its memory what it likes."""


# Torch keeps this as what it was before the conjugate, to be negated by whoever reads it.
IMAGINARY = torch.view_as_complex(torch.ones(2, 2)).conj().imag


@pytest.mark.parametrize(
    ("value", "row"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), (3,)),
        (torch.zeros(2, 3, dtype=torch.bfloat16), (3,)),
        (torch.zeros(2, 3, dtype=torch.int32), (3,)),
        (torch.zeros(2, dtype=torch.uint8), ()),
        (torch.zeros(3, 2), (3,)),
        (torch.zeros(3), ()),
        (torch.tensor(0.0), ()),
        (torch.zeros(2, 4)[:, ::2], (2,)),
        (torch.zeros(3, 2).t(), (3,)),
        (torch.zeros(2, 3, device="meta"), (3,)),
        (torch.eye(2, 3).to_sparse(), (3,)),
        (torch._efficientzerotensor(2), ()),
        (IMAGINARY, ()),
        (torch.zeros(2, 3).as_subclass(Named), (3,)),
        (torch.nn.Parameter(torch.zeros(2, 3)), (3,)),
        ("ab", ()),
        (None, ()),
    ],
    ids=str,
)
def test_others_are_left_to_be_converted(value: Any, row: tuple[int, ...]) -> None:
    _, fill = prepared(bucket(2, [("x", "float32", row)]), 2)
    with pytest.raises((TypeError, ValueError)):
        fill([value])
    assert fill._other is not None


def test_what_is_yet_to_be_negated_is_converted_to_what_it_is() -> None:
    assert IMAGINARY.is_neg()
    checker = RequestChecker([InputSpec("x", "float32", ())], [], "error")
    (array,), _ = checker.convert([IMAGINARY])
    np.testing.assert_array_equal(array, [-1, -1])


def test_an_older_torch_has_its_tensors_converted(
    library: FillLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    assert tensor_reader() is None
    monkeypatch.setattr(library, "types", native_fill._types())
    staged, fill = prepared(bucket(2, [("a", "int64", ())]), 2)
    assert fill([np.array([3, 4])]) == 0
    np.testing.assert_array_equal(staged.views["a"], [3, 4])
    with pytest.raises(TypeError, match=r"^expected a numpy array; got Tensor$"):
        fill([torch.tensor([3, 4])])
