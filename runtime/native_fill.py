"""Filling by a library that capture put into the artifact: one call for all inputs of a request.

It takes the place of `recreplay.runtime.fill.Fill` for requests whose arrays are numpy's own, or
tensors of torch in the host's memory, and of exactly the staged dtypes, or int64 for int32 where
the rows of a table bound them; all others go that way. Without a C compiler at capture there is no
library, and every request does.

The library reads arrays as numpy lays them out in memory. That is proved on an array when it is
loaded; an interpreter that lays objects out otherwise (a free-threaded one does) has none.
"""

from __future__ import annotations

import ctypes
from _ctypes import dlclose
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recreplay.runtime.blocks import Block, Limits
from recreplay.runtime.builtin_call import NO_ARGUMENT, ONE_ARGUMENT, builtin
from recreplay.runtime.fill import Fill, Filler
from recreplay.runtime.id_check import IdCheck, column_check, whole_check
from recreplay.runtime.spec import DTYPES
from recreplay.runtime.tensor_exchange import dlpack_type, tensor_reader

Array = np.ndarray[Any, Any]
_OTHER_ARRAYS, _BAD_IDS = 1, 2  # what the library answers, besides 0
_ID_BYTES = (4, 8)  # of the ids that it checks
_WIDE = DTYPES["int64"]
_FITS = 1 << 31  # what is below is an int32


class Input(ctypes.Structure):
    """`struct input` of fill.c."""

    _fields_ = (
        ("staged", ctypes.c_void_p),
        ("dtype", ctypes.c_void_p),
        ("row", ctypes.c_void_p),
        ("row_bytes", ctypes.c_size_t),
        ("least", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("row_dimensions", ctypes.c_int32),
        ("id_bytes", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("narrows", ctypes.c_uint8),
    )


class _Rows(ctypes.Structure):
    """`struct rows` of fill.c."""

    _fields_ = (("first", ctypes.c_void_p), ("step", ctypes.c_ssize_t), ("wide", ctypes.c_int))


class FillCall(ctypes.Structure):
    """`struct recreplay_fill` of fill.c."""

    _fields_ = (
        ("type", ctypes.c_void_p),
        ("tensor", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("is_negative", ctypes.c_void_p),
        ("no", ctypes.c_void_p),
        ("wide", ctypes.c_void_p),
        ("rows", ctypes.c_size_t),
        ("size", ctypes.c_size_t),
        ("row_bytes", ctypes.c_size_t),
        ("count", ctypes.c_size_t),
        ("inputs", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )


class FillLibrary:
    """The functions of fill.c, called with the interpreter lock held: they read Python objects.

    `helpers`: threads that help whoever fills a bucket of 2 MB or more. All who load the same file
    share them.
    """

    def __init__(self, path: Path, helpers: int = 0) -> None:
        library = ctypes.PyDLL(str(path))
        self.fill, self.in_place = library.recreplay_fill, library.recreplay_in_place
        self.fill_mixed, self.needed = library.recreplay_fill_mixed, library.recreplay_needed
        self._reads = library.recreplay_reads
        self._reads.argtypes = [ctypes.py_object, *[ctypes.c_void_p] * 2, ctypes.c_int32]
        self._reads.argtypes += [ctypes.c_void_p] * 2
        self._same_dtype = library.recreplay_same_dtype
        self._same_dtype.argtypes = [ctypes.py_object] * 2
        self.types = _types()  # what calls begin with
        self._handle = library._handle
        library.recreplay_open_crew(ctypes.c_size_t(helpers))
        self._close_crew = library.recreplay_close_crew

    def close(self) -> None:
        """End the helpers, and let go of the library, which the loader counts."""
        self._close_crew()
        dlclose(self._handle)

    def reads_arrays(self) -> bool:
        """Whether this process's numpy keeps arrays and dtypes where the library looks for them."""
        probe = np.zeros((3, 5, 7), np.int64)
        shape = (ctypes.c_ssize_t * 3)(*probe.shape)
        where = (id(np.ndarray), probe.ctypes.data, probe.ndim)
        if not self._reads(probe, *where, ctypes.addressof(shape), id(probe.dtype)):
            return False
        for dtype in DTYPES.values():
            copied = dtype.newbyteorder("=")  # an object of its own, as what was pickled has
            others = [*DTYPES.values(), dtype.newbyteorder("S")]
            if any(self._same_dtype(copied, o) != (copied == o) for o in others):
                return False
        return True

    def prepare(self, filler: Filler, n: int) -> NativeFill:
        return NativeFill(self, filler, n)


def load_fill_library(path: Path, helpers: int = 0) -> FillLibrary | None:
    """None if there is no such file, or it cannot read this interpreter's arrays."""
    if not path.exists():
        return None
    library = FillLibrary(path, helpers)
    if library.reads_arrays():
        return library
    library.close()
    return None


class NativeFill:
    """Copies requests of one number of rows into staging; made by `Filler.prepare`."""

    __slots__ = ("_checks", "_fill", "_filler", "_inputs", "_library", "_n", "_other", "_shapes")

    def __init__(self, library: FillLibrary, filler: Filler, n: int) -> None:
        self._library, self._filler, self._n = library, filler, n
        self._other: Fill | None = None
        self._shapes: list[object] = []  # that inputs point to
        inputs, self._checks = inputs_of(filler, n, self._shapes)
        self._inputs = (Input * len(inputs))(*(inputs[name] for name in filler.order))
        self._fill = self._call(library.fill, ONE_ARGUMENT, (_Rows * len(inputs))())

    def __call__(self, values: Sequence[Any], first_row: int = 0) -> int:
        """Copy, pad, check; returns how many ids were clamped.

        `first_row`: the row of the request that row 0 of these is, for messages.

        Raises TypeError or ValueError as `Fill` does.
        """
        code = self._fill(tuple(values))
        if code == _OTHER_ARRAYS:
            if self._other is None:
                self._other = Fill(self._filler, self._n)
            return self._other(values, first_row)
        return self._checked(code, first_row) if code or self._checks else 0

    def lend(self, inputs: tuple[Array, ...]) -> Callable[[], int]:
        """What pads and checks a request that was written to `inputs`, in order: to the staging
        memory, or beside it where ids are staged narrower. It returns how many ids were clamped."""
        wide = self._filler.wide
        values = (_Rows * len(inputs))(
            *(
                _Rows(array.ctypes.data, array.strides[0], array.dtype == wide.get(name))
                for name, array in zip(self._filler.order, inputs, strict=True)
            )
        )
        read = self._call(self._library.in_place, NO_ARGUMENT, values)

        def fill() -> int:
            code = read()
            if code == _OTHER_ARRAYS:
                return self(inputs)
            return self._checked(code, 0) if code or self._checks else 0

        return fill

    def _call(
        self, function: Any, arguments: int, values: ctypes.Array[_Rows]
    ) -> Callable[..., int]:
        """`function` of the library; `values` says where rows are, or has room for it."""
        inputs = self._inputs
        call = FillCall(
            *self._library.types,
            self._n,
            self._filler.size,
            sum(i.row_bytes for i in inputs),
            len(inputs),
            ctypes.addressof(inputs),
            ctypes.addressof(values),
        )
        return builtin(function, arguments, call, (inputs, values, self._shapes))

    def _checked(self, code: int, first_row: int) -> int:
        if code == _BAD_IDS:
            return self._filler.bad_ids(self._n, first_row)
        return self._filler.check(self._checks, self._n, first_row)


def _types() -> tuple[int | None, ...]:
    """What `FillCall` says of arrays and tensors: their types, and how tensors are read."""
    import torch

    read = tensor_reader()
    kind = None if read is None else id(torch.Tensor)
    # Python's own objects of a module and of the interpreter, which live as long as the process.
    tensors = (kind, read, id(torch.Tensor.is_neg), id(False))
    return id(np.ndarray), *tensors, id(_WIDE)


def inputs_of(
    filler: Filler, n: int | None, rows: list[object]
) -> tuple[dict[str, Input], list[IdCheck]]:
    """The inputs of a filler by name, and the checks of ids that are not the library's, of `n` rows
    or of all. The shapes that inputs point to are kept in `rows`."""
    inputs: dict[str, Input] = {}
    checks: list[IdCheck] = []
    for block in filler.blocks:
        limits = block.limits if filler.checks else None
        if limits is not None and block.view.dtype.itemsize not in _ID_BYTES:
            checks.append(whole_check(block.view, limits))
            limits = None
        if filler.checks:
            most = block.view.shape[1] if n is None else n
            checks += [column_check(block.view, some, most) for some in block.columns]
        inputs |= _inputs(block, limits, filler.bounded, rows)
    return inputs, checks


def _inputs(
    block: Block, limits: Limits | None, bounded: Collection[str], rows: list[object]
) -> dict[str, Input]:
    """The inputs of a block by name; the shapes that they point to are kept in `rows`.

    Limits are of what the dtype can hold. Where there are none and ids are narrowed, the limit is
    what fits: the library leaves negative ones to `Fill`, which may refuse them. The least id is
    what it puts behind jagged values, whether or not it checks these.
    """
    known = block.limits
    least = [0] * len(block.names) if known is None else [int(number) for number in known.least]
    view = block.view
    row = view.shape[2:]
    shape = (ctypes.c_ssize_t * len(row))(*row)
    rows.append(shape)
    return {
        name: Input(
            view[i].ctypes.data,
            id(view.dtype),
            ctypes.addressof(shape),
            view[0, :1].nbytes,
            least[i],
            _FITS - least[i] if limits is None else int(limits.end[i]) - least[i],
            len(row),
            0 if limits is None else view.dtype.itemsize,
            *dlpack_type(view.dtype),
            view.dtype == np.int32 and name in bounded,
        )
        for i, name in enumerate(block.names)
    }
