"""Copy a request into a bucket's staging memory: pad, check ids. The host's share of a replay.

Inputs that were staged side by side are one block `[F, B, ...]`: padded by one call and checked by
one reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recreplay.runtime.blocks import blocks, make_block
from recreplay.runtime.errors import IdRangeError
from recreplay.runtime.id_check import IdCheck, column_check, whole_check
from recreplay.runtime.ids import clamp_ids, out_of_range, within
from recreplay.runtime.manifest import Bucket
from recreplay.runtime.narrow import narrow_ids
from recreplay.runtime.spec import DTYPES, IdBound, InputSpec

if TYPE_CHECKING:
    from recreplay.runtime.native_fill import FillLibrary, NativeFill

Array = np.ndarray[Any, Any]
Check = Literal["error", "clamp", "off"]
CHECKS: tuple[Check, ...] = ("error", "clamp", "off")


class Fill:
    """Copies requests of one number of rows into staging, by numpy; made once per number, by
    `Filler.prepare`."""

    __slots__ = ("_checks", "_filler", "_n", "_padding", "_views")

    def __init__(self, filler: Filler, n: int) -> None:
        self._filler = filler
        self._n = n
        views: dict[str, Array] = {}
        self._padding: list[tuple[Array, Array]] = []
        self._checks: list[IdCheck] = []
        for block in filler.blocks:
            view = block.view
            views |= {name: view[i, :n] for i, name in enumerate(block.names)}
            if n < view.shape[1]:
                self._padding.append((view[:, n:], view[:, :1]))
            if filler.checks:
                if block.limits is not None:
                    self._checks.append(whole_check(view, block.limits))
                self._checks += [column_check(view, some, n) for some in block.columns]
        self._views = [views[name] for name in filler.order]

    def __call__(self, values: Sequence[Array], first_row: int = 0) -> int:
        """Copy, pad, check; returns how many ids were clamped.

        `first_row`: the row of the request that row 0 of these is, for messages.

        Raises TypeError or ValueError if a value is no array of exactly the staged dtype and
        shape.
        """
        filler = self._filler
        for name, view, value in zip(filler.order, self._views, values, strict=True):
            if type(value) is not np.ndarray:
                raise TypeError(f"expected a numpy array; got {type(value).__name__}")
            wide = filler.wide.get(name)
            if wide is not None and value.dtype == wide:
                if value.shape != view.shape:
                    raise ValueError(f"expected an array of shape {view.shape}; got {value.shape}")
                value = filler.narrow(name, value, view.dtype, first_row)
            np.concatenate((value,), out=view, casting="no")  # an assignment would cast
        return self._in_place(first_row)

    def lend(self, inputs: tuple[Array, ...]) -> Callable[[], int]:
        """What pads and checks a request that was written to `inputs`, in order: to the staging
        memory, or beside it where ids are staged narrower. It returns how many ids were clamped."""
        return partial(self, inputs) if self._filler.wide else self._in_place

    def _in_place(self, first_row: int = 0) -> int:
        for padding, first in self._padding:
            padding[...] = first
        return self._filler.check(self._checks, self._n, first_row)


class Filler:
    """Fills the staging memory of one bucket of one lane. Requests come in `order`, by name.

    Inputs in `wide` have ids of that dtype in requests, and narrower ones in staging.
    """

    def __init__(
        self,
        bucket: Bucket,
        specs: Sequence[InputSpec],
        bounds: Sequence[IdBound],
        memory: Array,
        check: Check,
        library: FillLibrary | None = None,
    ) -> None:
        self.order = tuple(spec.name for spec in specs)
        self.wide = bucket.wide(specs)
        self.bounded = {b.input for b in bounds}
        integers = {s.name for s in bucket.inputs if DTYPES[s.dtype].kind in "iu"}
        whole = {b.input: b for b in bounds if b.column is None and b.input in integers}
        parts: dict[str, list[IdBound]] = {}
        for b in bounds:
            if b.column is not None or b.input not in whole:
                parts.setdefault(b.input, []).append(b)
        self.blocks = [make_block(slots, whole, parts, memory) for slots in blocks(bucket)]
        self.checks = check != "off"
        self.size = bucket.size
        self._bounds = bounds
        self._check = check
        self._library = library

    def prepare(self, n: int) -> Fill | NativeFill:
        """The copy, padding and check of requests of `n` rows."""
        return Fill(self, n) if self._library is None else self._library.prepare(self, n)

    def narrow(self, name: str, ids: Array, dtype: np.dtype[Any], first_row: int) -> Array:
        """Ids of an input in `wide` as they are staged. Raises IdRangeError for what does not fit,
        or makes it fit, as the runtime was told to."""
        mine = [bound for bound in self._bounds if bound.input == name]
        narrow = narrow_ids(ids, dtype, mine, self._check == "clamp", first_row=first_row)
        assert narrow is not None  # capture narrows what bounds cover
        return narrow

    def check(self, checks: Sequence[IdCheck], n: int, first_row: int) -> int:
        """How many ids were clamped, if not all checks hold."""
        for check in checks:
            # One reduction where all is well; which id is wrong is worked out only when one is.
            if not check.holds():
                return self.bad_ids(n, first_row)
        return 0

    def bad_ids(self, n: int, first_row: int) -> int:
        """Raise, or clamp and count, as the runtime was told to."""
        if self._check == "error":
            raise self._range_error(n, first_row)
        return self._clamp(n)

    def _offences(self, n: int) -> list[tuple[IdBound, Array, Array]]:
        """Bound, ids and where they break it, for each bound that is broken."""
        found = []
        views = {name: b.view[i] for b in self.blocks for i, name in enumerate(b.names)}
        for bound in self._bounds:
            ids = bound.of(views[bound.input][:n])
            bad = ~within(ids, bound)
            if bad.any():
                found.append((bound, ids, bad))
        return found

    def _range_error(self, n: int, first_row: int) -> IdRangeError:
        bound, ids, bad = self._offences(n)[0]
        place = np.argwhere(bad)[0]
        return out_of_range(bound, first_row + place[0], place[1:], ids[tuple(place)])

    def _clamp(self, n: int) -> int:
        clamped = 0
        for bound, ids, bad in self._offences(n):
            clamped += int(bad.sum())
            clamp_ids(ids, bound)
        if n < self.size:
            for block in self.blocks:
                block.view[:, n:] = block.view[:, :1]
        return clamped
