"""Requests with a user side or jagged values, filled by the library of an artifact in one call.

It takes requests that are right and fit in the bucket, of such arrays as
`recreplay.runtime.native_fill` takes; all others go the way of `MixedFill`, which says what is
wrong with them, clamps ids, or cuts. By numpy, dividing and copying takes 15 us and more for each
jagged input.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, get_args

from recreplay.runtime.builtin_call import ONE_ARGUMENT, builtin
from recreplay.runtime.fill import Filler
from recreplay.runtime.native_fill import FillCall, FillLibrary, Input, inputs_of
from recreplay.runtime.spec import DTYPES, InputSpec, Kind
from recreplay.runtime.tensor_exchange import dlpack_type

_KINDS: tuple[Kind, ...] = get_args(Kind)


class _MixedInput(ctypes.Structure):
    """`struct mixed_input` of fill_mixed.h."""

    _fields_ = (
        ("input", Input),
        ("kind", ctypes.c_int32),
        ("user", ctypes.c_int32),
        ("along", ctypes.c_int32),
        ("capacity", ctypes.c_int32),
    )


class _View(ctypes.Structure):
    """`struct view` of fill.c."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dimensions", ctypes.c_int),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("unit", ctypes.c_ssize_t),
        ("wide", ctypes.c_int),
    )


class _Mixed(ctypes.Structure):
    """`struct recreplay_mixed` of fill_mixed.h."""

    _fields_ = (
        ("common", FillCall),
        ("as_int64", Input),
        ("as_int32", Input),
        ("users", ctypes.c_size_t),
        ("checks_index", ctypes.c_int32),
        ("inputs", ctypes.c_void_p),
        ("views", ctypes.c_void_p),
    )


class NativeMixed:
    """Fills one bucket of one lane with requests that are tuples of values in order.

    `needed(values)`: the rows of the smallest bucket that has room for them, 0 where the library
    cannot tell.
    """

    __slots__ = ("_checks", "_fill", "needed")

    def __init__(
        self, library: FillLibrary, filler: Filler, specs: Sequence[InputSpec], users: int
    ) -> None:
        """`filler` has all inputs, in the order of `specs`."""
        shapes: list[object] = []  # that inputs point to
        # Checked in all rows: those that are padded are right where the others are.
        made, self._checks = inputs_of(filler, None, shapes)
        place = {spec.name: i for i, spec in enumerate(specs)}
        inputs = (_MixedInput * len(specs))(
            *(
                _MixedInput(
                    made[spec.name],
                    _KINDS.index(spec.kind),
                    spec.user,
                    place.get(spec.along, -1),
                    spec.capacity,
                )
                for spec in specs
            )
        )
        views = (_View * len(specs))()
        common = FillCall(*library.types, 0, filler.size, 0, len(specs), None, None)
        call = _Mixed(
            common,
            _whole_number("int64"),
            _whole_number("int32"),
            users,
            filler.checks,
            ctypes.addressof(inputs),
            ctypes.addressof(views),
        )
        kept = (inputs, views, shapes)  # what the call points to
        self._fill: Callable[[tuple[Any, ...]], int]
        self._fill = builtin(library.fill_mixed, ONE_ARGUMENT, call, kept)
        self.needed: Callable[[tuple[Any, ...]], int]
        self.needed = builtin(library.needed, ONE_ARGUMENT, call, kept)

    def __call__(self, values: tuple[Any, ...], n: int) -> bool:
        """Copy, pad and check a request of `n` rows; False where it is not filled so."""
        return self._fill(values) == n and all(check.holds() for check in self._checks)


def _whole_number(dtype: str) -> Input:
    """How an array of numbers looks that is staged nowhere."""
    kind = DTYPES[dtype]
    return Input(None, id(kind), None, kind.itemsize, 0, 0, 0, 0, *dlpack_type(kind), 0)
