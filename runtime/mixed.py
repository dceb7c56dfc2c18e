"""Requests whose inputs do not all have one item a row: a user side, jagged values, or both.

A request is a tuple of values in the order of filling: inputs by row, inputs by user, then for each
jagged group what divides it and its values. `recreplay.runtime.native_mixed` fills most of them as
they come; the others are checked into a list of arrays, in which the rows of a group begin at what
is int64 `[rows + 1]`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recreplay.runtime.errors import CapacityError, EmptyBatchError, IdRangeError, InputShapeError
from recreplay.runtime.fill import Check, Fill, Filler
from recreplay.runtime.jagged import Group, GroupFiller, divide, groups, rows_of
from recreplay.runtime.manifest import Bucket, Manifest
from recreplay.runtime.native_fill import FillLibrary, NativeFill
from recreplay.runtime.native_mixed import NativeMixed
from recreplay.runtime.parts import Load, Part, cut_rows
from recreplay.runtime.request import OwnTensor, RequestChecker, none_is_own
from recreplay.runtime.spec import IdBound, InputSpec

Array = np.ndarray[Any, Any]


class Order:
    """The inputs of a model in the order of filling."""

    def __init__(self, manifest: Manifest) -> None:
        whole = [s for s in manifest.inputs if s.kind in ("rows", "index")]
        self.users = manifest.users
        self.row_mask = manifest.mask_name
        self.rows = [s for s in whole if not s.user]
        self.by_user = [s for s in whole if s.user]
        self.groups = groups(manifest.inputs)
        self.specs = [
            *self.rows,
            *self.by_user,
            *(spec for g in self.groups for spec in (g.division, *g.values)),
        ]

    def divided(self, values: Sequence[Array]) -> list[tuple[Group, Array, Sequence[Array]]]:
        """Each jagged group of a checked request, where its rows begin, and its values."""
        found = []
        at = len(self.rows) + len(self.by_user)
        for group in self.groups:
            stop = at + 1 + len(group.values)
            found.append((group, values[at], values[at + 1 : stop]))
            at = stop
        return found


def is_mixed(manifest: Manifest) -> bool:
    return not all(spec.by_row for spec in manifest.inputs)


def only(bucket: Bucket, specs: Sequence[InputSpec]) -> Bucket:
    """The bucket with some of its inputs alone."""
    names = {spec.name for spec in specs}
    return replace(bucket, inputs=tuple(slot for slot in bucket.inputs if slot.name in names))


class Divided(list[Array]):
    """A checked request. Every other one is values as they came."""


class MixedChecker(RequestChecker):
    """Turns a request into what `MixedFill` takes, and its number of rows."""

    def __init__(self, order: Order, bounds: Sequence[IdBound], check: Check) -> None:
        # Offsets and lengths become int64 to be checked, whatever they are staged as.
        specs = [
            replace(s, dtype="int64") if s.kind in ("offsets", "starts", "lengths") else s
            for s in order.specs
        ]
        super().__init__(specs, bounds, check, row_mask=order.row_mask)
        self._order = order
        by_row = [s for s in specs if s.kind != "values" and not s.user]
        self._by_row = specs.index(by_row[0])  # an input that has all rows
        self._ends = int(by_row[0].kind == "offsets")  # how many more items it has

    def check(self, request: Mapping[str, Any]) -> tuple[Sequence[Any], int]:
        """The inputs in order, of whatever type, and the number of rows that one of them speaks
        of."""
        if not isinstance(request, Mapping):
            raise self.name_error(request)
        try:
            values = self._get(request)
        except KeyError:
            raise self.name_error(request) from None
        if len(request) != len(self._names):
            raise self.name_error(request)
        try:
            n = len(values[self._by_row]) - self._ends
        except Exception:  # anybody's object; `convert` says what is wrong with it
            n = 0
        return (values, n) if n > 0 else self.convert(values)

    def convert(self, values: Sequence[Any]) -> tuple[Divided, int]:
        """Anything array-like as arrays of the captured dtypes, divided and checked, or the error
        that says why not."""
        order = self._order
        given = self.arrays(values)
        whole = len(order.rows) + len(order.by_user)
        counts = {
            spec.name: len(array) if spec.kind == "rows" else rows_of(spec, array)
            for spec, array in zip(self._specs, given, strict=True)
            if spec.kind != "values"
        }
        candidates = [s.name for s in order.specs if s.name in counts and not s.user]
        users = [s.name for s in order.specs if s.name in counts and s.user]
        n = _same_rows(candidates, counts, "all inputs of a request need the same number of rows")
        if n < 1:
            raise EmptyBatchError("the request has no rows; expected 1 or more")
        if users:
            m = _same_rows(users, counts, "all user inputs need the same number of users")
            self._check_users(users[0], m)
        arrays = Divided(given[:whole])
        for group in order.groups:
            division, *values = given[len(arrays) : len(arrays) + 1 + len(group.values)]
            arrays += [divide(group, division, values), *values]
        return arrays, n

    def _check_users(self, name: str, m: int) -> None:
        users = self._order.users
        if users == 1 and m != 1:
            raise InputShapeError(
                f"input {name!r} has {m} rows; it is a user input, which all rows of a request "
                "share, so expected 1"
            )
        if not 1 <= m <= users:
            raise InputShapeError(
                f"input {name!r} has {m} rows; the model was captured for requests of 1 to "
                f"{users} users"
            )


def _same_rows(names: Sequence[str], counts: Mapping[str, int], rule: str) -> int:
    first = counts[names[0]]
    for name in names:
        if counts[name] != first:
            raise InputShapeError(
                f"input {name!r} has {counts[name]} rows, but input {names[0]!r} has {first}; "
                f"{rule}"
            )
    return first


class Cutter:
    """Chooses buckets for checked requests, and cuts those that fit in none."""

    def __init__(self, manifest: Manifest) -> None:
        self.order = Order(manifest)
        self._sizes = [bucket.size for bucket in manifest.buckets]

    def parts(self, values: Sequence[Array], n: int, first_row: int = 0) -> list[Part]:
        """`first_row`: the row of the request that row 0 of these is, for messages."""
        for group, starts, _ in self.order.divided(values):
            if group.user and starts[-1] > group.capacity * self.order.users:
                raise CapacityError(
                    f"input {group.values[0].name!r} has {starts[-1]} values for the users of the "
                    f"request; there is room for {group.capacity * self.order.users}; send fewer, "
                    f"or capture with a capacity above {group.capacity} a user"
                )
        loads = [
            Load(group.values[0].name, starts, group.capacity)
            for group, starts, _ in self.order.divided(values)
            if not group.user
        ]
        return cut_rows(n, self._sizes, loads, first_row)

    def rows_alone(self, n: int) -> int:
        """In how many parts a request of n rows would run if its values took no room."""
        return -(-n // self._sizes[-1])

    def whole(self, n: int, needed: int) -> Part | None:
        """Where a request of `n` rows runs that has room in a bucket of `needed`, if there is
        one."""
        at = bisect_left(self._sizes, needed)
        if at == len(self._sizes):
            return None
        return Part(self._sizes[at], 0, n, moved=at > bisect_left(self._sizes, n))


class MixedFill:
    """Copies checked requests of one number of rows into staging; made by `MixedFiller.prepare`."""

    def __init__(self, filler: MixedFiller, n: int) -> None:
        self._filler = filler
        self._n = n
        self._rows = filler.rows.prepare(n)

    def as_it_came(self, values: tuple[Any, ...]) -> bool:
        """Copy, pad and check a request that is right, in one call; False where it is not filled
        so."""
        native = self._filler.native
        return native is not None and native(values, self._n)

    def __call__(self, values: Sequence[Any], first_row: int = 0) -> int:
        """Copy, pad, check; returns how many ids were clamped."""
        filler, order = self._filler, self._filler.order
        if not isinstance(values, Divided):
            if self.as_it_came(tuple(values)):
                return 0
            values, _ = filler.checker.convert(values)
        rows, stop = len(order.rows), len(order.rows) + len(order.by_user)
        clamped = self._rows(values[:rows], first_row) if rows else 0
        users = 0
        if stop > rows:
            users = len(values[rows])
            clamped += filler.user_fill(users)(values[rows:stop])
        for fill, (group, starts, arrays) in zip(filler.groups, order.divided(values), strict=True):
            clamped += fill(starts, arrays, 0 if group.user else first_row)
            users = len(starts) - 1 if group.user else users
        if filler.index is not None:
            clamped += filler.check_index(filler.index, self._n, users, first_row)
        return clamped


class MixedFiller:
    """Fills the staging memory of one bucket of one lane."""

    def __init__(
        self,
        bucket: Bucket,
        manifest: Manifest,
        order: Order,
        memory: Array,
        check: Check,
        library: FillLibrary | None,
    ) -> None:
        self.order = order
        self.checker = MixedChecker(order, manifest.bounds, check)
        self.native: NativeMixed | None = None
        if library is not None:
            everything = _filler(bucket, order.specs, manifest.bounds, memory, check, None)
            self.native = NativeMixed(library, everything, order.specs, manifest.users)
        self.rows = _filler(bucket, order.rows, manifest.bounds, memory, check, library)
        by_user = replace(bucket, size=manifest.users)
        self._by_user = _filler(by_user, order.by_user, manifest.bounds, memory, check, library)
        self._user_fills: dict[int, Fill | NativeFill] = {}
        self.groups = [
            GroupFiller(group, bucket, manifest.bounds, memory, check) for group in order.groups
        ]
        slots = {slot.name: slot for slot in bucket.inputs}
        self.index = next(
            (slots[spec.name].view(memory) for spec in order.rows if spec.kind == "index"), None
        )
        self._check = check

    def prepare(self, n: int) -> MixedFill:
        return MixedFill(self, n)

    def user_fill(self, users: int) -> Fill | NativeFill:
        found = self._user_fills.get(users)
        if found is None:
            found = self._user_fills[users] = self._by_user.prepare(users)
        return found

    def check_index(self, index: Array, n: int, users: int, first_row: int) -> int:
        """Refuse or clamp what names no user of this request."""
        mine = index[:n]
        bad = (mine < 0) | (mine >= users)
        if self._check == "off" or not bad.any():
            return 0
        if self._check == "error":
            row = int(np.argmax(bad))
            raise IdRangeError(
                f"input {next(s.name for s in self.order.rows if s.kind == 'index')!r}, row "
                f"{first_row + row}: user {mine[row]} is out of range; the request has {users} "
                f"users, so it is 0 to {users - 1}"
            )
        np.clip(mine, 0, users - 1, out=mine)
        index[n:] = index[0]
        return int(bad.sum())


def _filler(
    bucket: Bucket,
    specs: Sequence[InputSpec],
    bounds: Sequence[IdBound],
    memory: Array,
    check: Check,
    library: FillLibrary | None,
) -> Filler:
    names = [spec.name for spec in specs]
    mine = [bound for bound in bounds if bound.input in names]
    return Filler(only(bucket, specs), specs, mine, memory, check, library)


def make_checker(
    manifest: Manifest, check: Check, own_tensor: OwnTensor = none_is_own
) -> RequestChecker:
    """The request checker of a model; see `RequestChecker` for `own_tensor`."""
    if is_mixed(manifest):
        return MixedChecker(Order(manifest), manifest.bounds, check)
    return RequestChecker(manifest.inputs, manifest.bounds, check, own_tensor, manifest.mask_name)


def make_fillers(
    manifest: Manifest, memory: Array, check: Check, library: FillLibrary | None
) -> dict[int, Filler | MixedFiller]:
    """For each bucket, by size, what fills it with what the request checker gives."""
    if is_mixed(manifest):
        mixed = Order(manifest)
        return {
            b.size: MixedFiller(b, manifest, mixed, memory, check, library)
            for b in manifest.buckets
        }
    inputs = manifest.inputs
    return {
        b.size: Filler(only(b, inputs), inputs, manifest.bounds, memory, check, library)
        for b in manifest.buckets
    }


def rows_needed(filler: Filler | MixedFiller) -> Callable[[tuple[Any, ...]], int]:
    """What gives the rows of the smallest bucket that has room for the values of a request, or 0
    where that is for a checker to say. `filler`: of any bucket of a lane."""
    native = filler.native if isinstance(filler, MixedFiller) else None
    return (lambda values: 0) if native is None else native.needed
