"""Copy a request into a bucket's staging memory: pad, check ids. The host's share of a replay.

Ids that were staged side by side are padded and checked as one block `[F, B, L]`, so that the cost is per
group and not per feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from recreplay.runtime.errors import IdRangeError
from recreplay.runtime.manifest import Bucket
from recreplay.runtime.spec import DTYPES, IdBound, Slot

Array = np.ndarray[Any, Any]
Check = Literal["error", "clamp", "off"]
CHECKS: tuple[Check, ...] = ("error", "clamp", "off")


@dataclass(frozen=True)
class _Block:
    """Inputs of one shape that lie side by side: `view` is `[F, B, ...]`.

    `limits` holds the number of rows of the table of each input (or of each of `columns`), and is None
    where nothing is looked up.
    """

    names: tuple[str, ...]
    view: Array
    limits: Array | None
    columns: tuple[int, ...]


@dataclass(frozen=True)
class _Check:
    """Ids `[F, ids]`, or rows whose `columns` are ids, and the limit of each feature or column."""

    ids: Array
    limits: Array
    columns: list[int] | None

    def holds(self) -> bool:
        """True if every id is in range. A negative integer is a very large unsigned one."""
        if self.columns is None:
            worst = np.maximum.reduce(self.ids, axis=1)
            return not (worst >= self.limits).any()
        ids = self.ids[:, self.columns]
        return bool(((ids >= 0) & (ids < self.limits)).all())  # false for NaN as well


@dataclass(frozen=True)
class _Ready:
    """The views of one number of rows n: where inputs go, what is padded, what is checked."""

    real: list[Array]
    padding: list[tuple[Array, Array]]
    checks: list[_Check]


class Filler:
    """Fills the staging memory of one bucket of one lane."""

    def __init__(
        self,
        bucket: Bucket,
        order: Sequence[str],
        bounds: Sequence[IdBound],
        memory: Array,
        check: Check,
    ) -> None:
        slots = {s.name: s for s in bucket.inputs}
        self._size = bucket.size
        self._views = [slots[name].view(memory) for name in order]
        self._blocks = _blocks(bucket, bounds, memory)
        self._bounds = bounds
        self._check = check
        self._ready: dict[int, _Ready] = {}

    def fill(self, arrays: Sequence[Array], n: int) -> int:
        """Copy `n` rows of each array; returns how many ids were clamped."""
        ready = self._ready.get(n)
        if ready is None:
            ready = self._ready[n] = self._make_ready(n)
        for view, array in zip(ready.real, arrays, strict=True):
            view[...] = array
        for padding, first in ready.padding:
            padding[...] = first
        if self._check == "off":
            return 0
        for check in ready.checks:
            # One reduction where all is well; which id is wrong is worked out only when one is.
            if not check.holds():
                if self._check == "error":
                    raise self._range_error(n)
                return self._clamp(n)
        return 0

    def _make_ready(self, n: int) -> _Ready:
        padding = []
        if n < self._size:
            padding = [(b.view[:, n:], b.view[:, :1]) for b in self._blocks]
        checks = []
        for block in self._blocks:
            if block.limits is None:
                continue
            if block.columns:
                rows = block.view[0, :n].reshape(n, -1)
                checks.append(_Check(rows, block.limits, list(block.columns)))
                continue
            features = len(block.names)
            ids = block.view.reshape(features, -1)
            ids = ids[:, : n * (ids.shape[1] // self._size)]
            checks.append(_Check(ids.view(block.limits.dtype), block.limits, None))
        return _Ready([v[:n] for v in self._views], padding, checks)

    def _offences(self, n: int) -> list[tuple[IdBound, Array, Array]]:
        """Bound, ids and where they break it, for each bound that is broken."""
        found = []
        views = {name: b.view[i] for b in self._blocks for i, name in enumerate(b.names)}
        for bound in self._bounds:
            ids = views[bound.input][:n]
            if bound.column is not None:
                ids = ids[:, bound.column]
            bad = ~((ids >= 0) & (ids < bound.rows))
            if bad.any():
                found.append((bound, ids, bad))
        return found

    def _range_error(self, n: int) -> IdRangeError:
        bound, ids, bad = self._offences(n)[0]
        place = np.argwhere(bad)[0]
        where = f"input {bound.input!r}"
        if bound.column is not None:
            where += f" column {bound.column}"
        position = f", position {', '.join(map(str, place[1:]))}" if len(place) > 1 else ""
        return IdRangeError(
            f"{where}, row {place[0]}{position}: id {ids[tuple(place)]} is out of range; table "
            f"{bound.table!r} has {bound.rows} rows, so ids are 0 to {bound.rows - 1}"
        )

    def _clamp(self, n: int) -> int:
        clamped = 0
        for bound, ids, bad in self._offences(n):
            clamped += int(bad.sum())
            np.nan_to_num(ids, copy=False)
            np.clip(ids, 0, bound.rows - 1, out=ids)
        if n < self._size:
            for block in self._blocks:
                block.view[:, n:] = block.view[:, :1]
        return clamped


def _blocks(bucket: Bucket, bounds: Sequence[IdBound], memory: Array) -> list[_Block]:
    """Group inputs of one shape and dtype that are adjacent in memory and checked alike."""
    integers = {s.name for s in bucket.inputs if DTYPES[s.dtype].kind in "iu"}
    whole = {b.input: b for b in bounds if b.column is None and b.input in integers}
    by_column: dict[str, list[IdBound]] = {}
    for b in bounds:
        if b.input not in whole:
            by_column.setdefault(b.input, []).append(b)
    blocks = []
    run: list[Slot] = []

    def close() -> None:
        if run:
            blocks.append(_block(run, whole, by_column, memory))
            run.clear()

    for slot in sorted(bucket.inputs, key=lambda s: s.offset):
        if run:
            last = run[-1]
            joins = (
                last.offset + last.nbytes == slot.offset
                and (last.dtype, last.shape) == (slot.dtype, slot.shape)
                and (last.name in whole) == (slot.name in whole)
                and slot.name not in by_column
                and last.name not in by_column
            )
            if not joins:
                close()
        run.append(slot)
    close()
    return blocks


def _block(
    run: list[Slot],
    whole: dict[str, IdBound],
    by_column: dict[str, list[IdBound]],
    memory: Array,
) -> _Block:
    first = run[0]
    view = Slot("", first.dtype, (len(run), *first.shape), first.offset).view(memory)
    names = tuple(s.name for s in run)
    if first.name in whole:
        unsigned = np.dtype(f"uint{8 * DTYPES[first.dtype].itemsize}")
        limits = np.array([whole[n].rows for n in names], dtype=unsigned)
        return _Block(names, view, limits, ())
    if first.name in by_column:
        width = first.nbytes // (first.shape[0] * DTYPES[first.dtype].itemsize)
        found = [
            (column, b.rows)
            for b in by_column[first.name]
            for column in (range(width) if b.column is None else [b.column])
        ]
        return _Block(names, view, np.array([r for _, r in found]), tuple(c for c, _ in found))
    return _Block(names, view, None, ())
