"""Copy a request into a bucket's staging memory: pad, check ids. The host's share of a replay.

Inputs that were staged side by side are one block `[F, B, ...]`: copied by one call, padded by
one, checked by one reduction, so that the cost is per block and not per feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import numpy as np

from recreplay.runtime.errors import IdRangeError
from recreplay.runtime.ids import clamp_ids, out_of_range
from recreplay.runtime.manifest import Bucket
from recreplay.runtime.spec import DTYPES, IdBound, Slot

Array = np.ndarray[Any, Any]
Check = Literal["error", "clamp", "off"]
CHECKS: tuple[Check, ...] = ("error", "clamp", "off")
_LONG = 8192  # bytes of one input, from which copying it twice takes longer than a call for each
_FEW = 4096  # ids of 26 features: 0.5 us instead of 1.6 at 26, 2.4 instead of 3.0 at 8,320


def blocks(bucket: Bucket) -> list[list[Slot]]:
    """The inputs of a bucket in the order of filling: staged neighbours of one shape together."""
    ordered = sorted(bucket.inputs, key=lambda slot: slot.offset)
    group_of = {
        slot.name: group.name
        for group in bucket.staged
        for slot in ordered
        if group.offset <= slot.offset < group.offset + group.nbytes
    }

    def key(slot: Slot) -> tuple[object, ...]:
        return (group_of.get(slot.name, f"input:{slot.name}"), slot.shape)

    return [list(slots) for _, slots in groupby(ordered, key)]


def filling_order(buckets: Sequence[Bucket]) -> list[tuple[str, bool]]:
    """The inputs in the order that a checked request has them, and whether every bucket copies each
    together with neighbours.

    Buckets may lay their inputs out differently, since each has rewrites of its own; the first
    one's order is everybody's, and the others pick from it.
    """
    alone = {b[0].name for bucket in buckets for b in blocks(bucket) if len(b) == 1}
    return [(s.name, s.name not in alone) for block in blocks(buckets[0]) for s in block]


@dataclass(frozen=True)
class _Block:
    """Inputs of one shape that lie side by side: `view` is `[F, B, ...]`.

    `limits` holds the number of rows of the table that each input's ids look up, and is None where
    they look up none. `columns` are (input, column, rows) where only some columns do.
    """

    names: tuple[str, ...]
    view: Array
    limits: Array | None
    columns: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class _IdCheck:
    """Ids `[F, ids]`, or rows whose `columns` are ids, and the limit of each feature or column.

    `limit` is the one limit of all features, where their tables have one number of rows. `each` is
    the limit of every id, flat, where there are so few that comparing all of them is cheaper than
    finding the largest of each feature.
    """

    ids: Array
    limits: Array
    limit: int | None
    columns: list[int] | None
    each: Array | None = None

    def holds(self) -> bool:
        """True if every id is in range. A negative integer is a very large unsigned one."""
        if self.limit is not None:
            return bool(self.ids.item(self.ids.argmax()) < self.limit)  # half the cost of `max`
        if self.each is not None:
            # Compared as bytes: `all` of a small array takes longer than its comparison.
            return (self.ids.reshape(-1) < self.each).tobytes() == b"\x01" * len(self.each)
        if self.columns is None:
            worst = np.maximum.reduce(self.ids, axis=1)
            return bool((worst < self.limits).tobytes() == b"\x01" * len(worst))
        ids = self.ids[:, self.columns]
        return bool(((ids >= 0) & (ids < self.limits)).all())  # false for NaN as well


@dataclass(frozen=True, slots=True)
class _Joint:
    """Copy some inputs of a request into one block by one call.

    `take` picks them out of the request, in the block's order. `out` is the block itself where the
    request fills its bucket. Else it is a scratch array of exactly the request's rows, `source` is
    it by input, and `rows` says which of its rows each row of `target`, the block, holds: its own
    or, padded, row 0.
    """

    take: Callable[[Sequence[Array]], Sequence[Array]]
    out: Array
    source: Array
    rows: Array | None
    target: Array


class Fill:
    """Copies requests of one number of rows into staging; made once per number, by
    `Filler.prepare`."""

    __slots__ = ("_checks", "_exact", "_filler", "_joint", "_n", "_padding", "_rows", "_single")

    def __init__(self, filler: Filler, n: int) -> None:
        self._filler = filler
        self._n = n
        self._rows = {n}
        self._joint: list[_Joint] = []
        self._single: list[tuple[int, Array]] = []
        self._exact: list[tuple[int, Array]] = []  # of a block, each by itself, cast from nothing
        self._padding: list[tuple[Array, Array]] = []
        self._checks: list[_IdCheck] = []
        for block in filler.blocks:
            self._add(block, [filler.positions[name] for name in block.names])

    def __call__(self, values: Sequence[Array], first_row: int = 0) -> int:
        """Copy, pad, check; returns how many ids were clamped.

        `first_row`: the row of the request that row 0 of these is, for messages.

        Raises TypeError or ValueError if a value of a block has not exactly the block's dtype and
        shape, or any value another number of rows.
        """
        for at, view in self._single:
            view[...] = values[at]
        for at, view in self._exact:
            np.concatenate((values[at],), out=view, casting="no")
        for joint in self._joint:
            np.concatenate(joint.take(values), out=joint.out, casting="no")
            if joint.rows is not None:
                joint.source.take(joint.rows, axis=1, out=joint.target, mode="clip")
        # Only now: each array has just been in the cache, and copying ends where it does not fit.
        if {*map(len, values)} != self._rows:
            raise ValueError("inputs have different numbers of rows")
        for padding, first in self._padding:
            padding[...] = first
        return self._check(first_row)

    def in_place(self) -> int:
        """Pad and check a request that was written into staging; returns how many ids were
        clamped."""
        for joint in self._joint:
            if joint.rows is not None:
                joint.target[:, self._n :] = joint.target[:, :1]
        for padding, first in self._padding:
            padding[...] = first
        return self._check(0)

    def _check(self, first_row: int) -> int:
        for check in self._checks:
            # One reduction where all is well; which id is wrong is worked out only when one is.
            if not check.holds():
                return self._filler.bad_ids(self._n, first_row)
        return 0

    def _add(self, block: _Block, positions: Sequence[int]) -> None:
        n, view = self._n, block.view
        features, size, *row = view.shape
        if features == 1:
            self._single.append((positions[0], view[0, :n]))
            if n < size:
                self._padding.append((view[:, n:], view[:, :1]))
        elif n == size:
            out = view.reshape(features * n, *row)
            self._joint.append(_Joint(_picker(positions), out, out, None, view))
        elif view[0, :n].nbytes >= _LONG:
            self._exact += [(at, view[i, :n]) for i, at in enumerate(positions)]
            self._padding.append((view[:, n:], view[:, :1]))
        else:
            out = np.empty((features * n, *row), view.dtype)
            source = out.reshape(features, n, *row)
            rows = np.arange(size)
            rows[n:] = 0
            self._joint.append(_Joint(_picker(positions), out, source, rows, view))
        if not self._filler.checks:
            return
        if block.limits is not None:
            # Padded rows repeat row 0, so that the whole block holds just when the request does.
            ids = view.reshape(features, -1).view(f"u{view.dtype.itemsize}")
            limit = int(block.limits[0]) if (block.limits == block.limits[0]).all() else None
            each = _each(block.limits, ids) if limit is None and ids.size <= _FEW else None
            self._checks.append(_IdCheck(ids, block.limits, limit, None, each))
        for at in sorted({at for at, _, _ in block.columns}):
            mine = [(column, bound) for i, column, bound in block.columns if i == at]
            limits = np.array([bound for _, bound in mine])
            columns = [column for column, _ in mine]
            rows = view[at, :n].reshape(n, -1)
            self._checks.append(_IdCheck(rows, limits, None, columns))


def _picker(positions: Sequence[int]) -> Callable[[Sequence[Array]], Sequence[Array]]:
    """Of two items or more; a slice where they follow each other, which is three times as fast."""
    first, count = positions[0], len(positions)
    if list(positions) == list(range(first, first + count)):
        return itemgetter(slice(first, first + count))
    return itemgetter(*positions)


def _each(limits: Array, ids: Array) -> Array:
    """The limit of every id, of the ids' dtype if that can hold it, so that none is converted."""
    fits = int(limits.max()) <= np.iinfo(ids.dtype).max
    return np.repeat(limits.astype(ids.dtype) if fits else limits, ids.shape[1])


class Filler:
    """Fills the staging memory of one bucket of one lane. Requests come in `order`, by name."""

    def __init__(
        self,
        bucket: Bucket,
        order: Sequence[str],
        bounds: Sequence[IdBound],
        memory: Array,
        check: Check,
    ) -> None:
        self.positions = {name: at for at, name in enumerate(order)}
        integers = {s.name for s in bucket.inputs if DTYPES[s.dtype].kind in "iu"}
        whole = {b.input: b for b in bounds if b.column is None and b.input in integers}
        parts: dict[str, list[IdBound]] = {}
        for b in bounds:
            if b.column is not None or b.input not in whole:
                parts.setdefault(b.input, []).append(b)
        self.blocks = [_block(slots, whole, parts, memory) for slots in blocks(bucket)]
        self.checks = check != "off"
        self._size = bucket.size
        self._bounds = bounds
        self._check = check

    def prepare(self, n: int) -> Fill:
        """The copy, padding and check of requests of `n` rows."""
        return Fill(self, n)

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
            ids = views[bound.input][:n]
            if bound.column is not None:
                ids = ids[:, bound.column]
            bad = ~((ids >= 0) & (ids < bound.rows))
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
            clamp_ids(ids, bound.rows)
        if n < self._size:
            for block in self.blocks:
                block.view[:, n:] = block.view[:, :1]
        return clamped


def _block(
    run: list[Slot], whole: dict[str, IdBound], parts: dict[str, list[IdBound]], memory: Array
) -> _Block:
    first = run[0]
    dtype = DTYPES[first.dtype]
    view = Slot("", first.dtype, (len(run), *first.shape), first.offset).view(memory)
    names = tuple(s.name for s in run)
    limits = None
    if all(name in whole for name in names):
        # The ids are compared as unsigned numbers, where negative ones are very large.
        most = 1 << 8 * dtype.itemsize - (dtype.kind == "i")
        limits = np.array([min(whole[name].rows, most) for name in names], dtype=np.uint64)
    width = first.nbytes // (first.shape[0] * dtype.itemsize)
    columns = tuple(
        (at, column, b.rows)
        for at, name in enumerate(names)
        for b in parts.get(name, ())
        for column in (range(width) if b.column is None else [b.column])
    )
    return _Block(names, view, limits, columns)
