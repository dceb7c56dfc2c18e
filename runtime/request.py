"""Check a request against the captured inputs: names, types, dtypes, shapes. One exact error each.

Of most requests, dicts of numpy arrays of the right dtypes, only the names are looked at here: what
copies the arrays refuses those that are not as captured, and `convert` then says why, or makes them
so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.runtime.errors import (
    EmptyBatchError,
    InputDtypeError,
    InputNameError,
    InputShapeError,
    InputTypeError,
)
from recreplay.runtime.fill import Check
from recreplay.runtime.narrow import narrow_ids
from recreplay.runtime.spec import DTYPES, IdBound, InputSpec

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
OwnTensor = Callable[[object], "torch.Tensor | None"]


def none_is_own(value: object) -> torch.Tensor | None:
    """Every input is brought to the host."""
    return None


class RequestChecker:
    """Turns a request into values in the order of filling, and its number of rows.

    Ids may be wider integers than captured, where they fit; with `check="clamp"` they are made to.

    `own_tensor` makes a tensor of what lies in the memory of the device that replays; where it is
    of the captured dtype, `convert` leaves it there.
    """

    def __init__(
        self,
        specs: Sequence[InputSpec],
        bounds: Sequence[IdBound],
        check: Check,
        own_tensor: OwnTensor = none_is_own,
        row_mask: str | None = None,
    ) -> None:
        """`row_mask`: the input of the model that requests do not have, for messages."""
        self._specs = tuple(specs)
        self._own_tensor, self._row_mask = own_tensor, row_mask
        self._bounds = {s.name: [b for b in bounds if b.input == s.name] for s in specs}
        self._dtypes = [DTYPES[s.dtype] for s in specs]
        self._clamp = check == "clamp"
        self._names = [s.name for s in specs]
        getter = itemgetter(*self._names)
        self._get = getter if len(specs) > 1 else lambda request: (getter(request),)

    def check(self, request: Mapping[str, Any]) -> tuple[Sequence[Any], int]:
        """The inputs in order, of whatever type, and the number of rows of the first."""
        if type(request) is not dict and not isinstance(request, Mapping):
            raise self.name_error(request)
        try:
            values = self._get(request)
        except KeyError:
            raise self.name_error(request) from None
        if len(request) != len(self._names):
            raise self.name_error(request)
        try:
            n = len(values[0])
        except Exception:  # anybody's object; `convert` says what is wrong with it
            n = 0
        return (values, n) if n else self.convert(values)

    def convert(self, values: Sequence[Any]) -> tuple[list[Any], int]:
        """Anything array-like as arrays of exactly the captured dtypes, on the host or the device,
        or the error that says why not."""
        arrays = self.arrays(values)
        n = len(arrays[0])
        for array, spec in zip(arrays, self._specs, strict=True):
            if len(array) != n:
                raise InputShapeError(
                    f"input {spec.name!r} has {len(array)} rows, but input {self._specs[0].name!r} "
                    f"has {n}; all inputs of a request need the same number of rows"
                )
        if n == 0:
            raise EmptyBatchError("the request has no rows; expected 1 or more")
        return arrays, n

    def arrays(self, values: Sequence[Any]) -> list[Any]:
        """The inputs in order, of the captured dtypes and widths; of any numbers of rows."""
        arrays = []
        for value, spec, wanted in zip(values, self._specs, self._dtypes, strict=True):
            array: Any = None if type(value) is np.ndarray else self._own_tensor(value)
            if array is None or str(array.dtype) != f"torch.{spec.dtype}":
                array = _as_numpy(value if array is None else array, spec)
                if array.dtype is not wanted:
                    array = self._cast(value, array, spec)
            if array.shape[1:] != spec.row or not array.ndim:
                shape = tuple(array.shape)
                raise InputShapeError(
                    f"input {spec.name!r} has shape {shape}; expected {spec.describe()}"
                )
            arrays.append(array)
        return arrays

    def name_error(self, request: Any) -> Exception:
        if not isinstance(request, Mapping):
            return InputTypeError(
                f"a request is a dict of arrays by input name; got {type(request).__name__}"
            )
        missing = [n for n in self._names if n not in request]
        extra = [str(n) for n in request if n not in self._names]
        parts = []
        if missing:
            parts.append(f"missing {', '.join(missing)}")
        if extra:
            parts.append(f"unknown {', '.join(extra)}")
        masked = self._row_mask in extra
        advice = f"; {self._row_mask} is the row mask, which the runtime writes" if masked else ""
        return InputNameError(
            f"inputs do not match the model: {'; '.join(parts)}; expected "
            f"{', '.join(self._names)}{advice}"
        )

    def _cast(self, value: Any, array: Array, spec: InputSpec) -> Array:
        """`array`, which `value` was, in the captured dtype if it gets there without loss."""
        free_dtype = not hasattr(value, "dtype")  # Python numbers have no dtype to insist on
        if array.dtype.kind not in "biuf":
            raise InputTypeError(
                f"input {spec.name!r} is {_kind(value, array)}; expected an array {spec.describe()}"
            )
        wanted = DTYPES[spec.dtype]
        if array.dtype == wanted or _widens(array.dtype, wanted):
            return array.astype(wanted)
        if free_dtype and (not array.size or np.can_cast(array.dtype, wanted, "same_kind")):
            cast = array.astype(wanted)
            if wanted.kind == "f" or bool((cast == array).all()):
                return cast
        bounds = self._bounds[spec.name]
        if bounds and array.dtype.kind == wanted.kind == "i":
            narrow = narrow_ids(
                array, wanted, bounds, self._clamp, "item" if spec.kind == "values" else "row"
            )
            if narrow is not None:
                return narrow
        raise InputDtypeError(
            f"input {spec.name!r} has dtype {array.dtype}; expected {spec.dtype}, or one that "
            f"widens to it without loss; convert it with .astype({spec.dtype!r})"
        )


def _as_numpy(value: Any, spec: InputSpec) -> Array:
    try:
        if isinstance(value, np.ndarray):
            return plain_array(value)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            return _tensor_as_numpy(value)
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return plain_array(np.asanyarray(value))
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InputTypeError(
            f"input {spec.name!r} is a {type(value).__name__} that is no array ({error}); expected "
            f"an array {spec.describe()}"
        ) from error


def plain_array(array: Array) -> Array:
    """The same memory as numpy's own type. Raises TypeError where some of it is masked."""
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise TypeError("some of its values are masked")
    return array.view(np.ndarray)


def _tensor_as_numpy(tensor: Any) -> Array:
    try:
        array: Array = tensor.numpy()  # which is half of the cost of all that there might be to do
    except (RuntimeError, TypeError):  # not on the CPU, with a gradient, or to be negated
        array = tensor.detach().cpu().resolve_neg().numpy()
    return array


def _widens(got: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    same_family = got.kind == wanted.kind or (got.kind == "u" and wanted.kind == "i")
    return same_family and np.can_cast(got, wanted, "safe")


def _kind(value: Any, array: Array) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of dtype {array.dtype}"
    return f"a {type(value).__name__} of dtype {array.dtype}"
