"""What a borrow asks for: how many items each input will have, and what bucket holds them: pure."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, NamedTuple

from recreplay.runtime.errors import BorrowError
from recreplay.runtime.jagged import Group, groups
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.spec import InputSpec


class Room(NamedTuple):
    """For `rows` rows of `users` users, and so many values of each jagged input by name. `moved`: a
    smaller bucket has rows enough, but no room for the values."""

    bucket: int
    rows: int
    users: int
    values: dict[str, int]
    moved: bool

    def items(self, spec: InputSpec) -> int | None:
        """How many items an input has; None of what is in `values`."""
        if spec.kind == "values":
            return None
        return (self.users if spec.user else self.rows) + (spec.kind == "offsets")


class Rooms:
    """Finds room for requests of one model. All errors are `BorrowError`."""

    def __init__(self, manifest: Manifest) -> None:
        self._sizes = [bucket.size for bucket in manifest.buckets]
        self._cuts = manifest.row_mask is None
        self._users = manifest.users  # 0 where there is no user side
        found = groups(manifest.inputs)
        self._names = [spec.name for group in found for spec in group.values]
        # Each group, its first input, and the most values of a request.
        self._groups = [
            (g, g.values[0].name, g.capacity * (self._users if g.user else self._sizes[-1]))
            for g in found
        ]

    def rows(self, n: object) -> int:
        """`n`, if a bucket has so many rows."""
        rows = _whole(n, "rows")
        most = self._sizes[-1]
        if not 1 <= rows <= most:
            more = " (`run` splits larger requests)" if self._cuts else ""
            raise BorrowError(
                f"cannot borrow {rows} rows; expected 1 to {most}, the largest bucket{more}"
            )
        return rows

    def find(self, n: object, values: Mapping[str, object], users: object) -> Room:
        """Room for `n` rows of so many users, and so many values of each jagged input by name."""
        rows = self.rows(n)
        people = self._checked_users(users)
        counts = self._counts(values)
        needed = rows
        for group, name, most in self._groups:
            total = counts[name]
            for spec in group.values:
                if counts[spec.name] != total:
                    raise _apart(group, spec.name, counts)
            if not 0 <= total <= most:
                raise self._no_room(group, total, most)
            if not group.user:
                needed = max(needed, -(-total // group.capacity))
        smallest, at = bisect_left(self._sizes, rows), bisect_left(self._sizes, needed)
        return Room(self._sizes[at], rows, people, counts, at > smallest)

    def _checked_users(self, users: object) -> int:
        count = _whole(users, "users")
        if self._users == 0 and count != 1:
            raise BorrowError(f"cannot borrow {count} users; the model has no user side")
        if not 1 <= count <= max(self._users, 1):
            raise BorrowError(
                f"cannot borrow {count} users; the model was captured for requests of 1 to "
                f"{self._users}"
            )
        return count

    def _counts(self, values: Mapping[str, object]) -> dict[str, int]:
        for name in values:
            if name not in self._names:
                raise BorrowError(
                    f"cannot borrow values of {name!r}; jagged inputs are "
                    f"{', '.join(self._names) or 'none'}"
                )
        missing = [name for name in self._names if name not in values]
        if missing:
            raise BorrowError(
                "a borrow says how many values each jagged input has; missing "
                f"{', '.join(missing)}; write borrow(n, {{{missing[0]!r}: 100, ...}})"
            )
        return {name: _whole(values[name], "values of", name) for name in self._names}

    def _no_room(self, group: Group, total: int, most: int) -> BorrowError:
        what = "a request's users" if group.user else "the largest bucket"
        return BorrowError(
            f"cannot borrow {total} values of {group.values[0].name!r}; expected 0 to {most}, the "
            f"room of {what}; send fewer, or capture with a capacity above {group.capacity}"
        )


def _apart(group: Group, name: str, counts: Mapping[str, int]) -> BorrowError:
    first = group.values[0].name
    return BorrowError(
        f"cannot borrow {counts[name]} values of {name!r} and {counts[first]} of {first!r}; input "
        f"{group.division.name!r} divides both"
    )


def _whole(number: Any, what: str, name: str | None = None) -> int:
    try:
        return operator.index(number)
    except TypeError:
        of = "" if name is None else f" {name!r}"
        raise BorrowError(f"cannot borrow {number!r} {what}{of}; expected a whole number") from None
