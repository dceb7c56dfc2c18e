"""What a borrow asks for: how many items each input will have, and what bucket holds them: pure."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recreplay.runtime.errors import BorrowError
from recreplay.runtime.jagged import Group, groups
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.spec import InputSpec


@dataclass(frozen=True, slots=True)
class Room:
    """`items`: how many items each input has, by name. `moved`: a smaller bucket has rows enough,
    but no room for the values."""

    bucket: int
    rows: int
    items: dict[str, int]
    moved: bool


class Rooms:
    """Finds room for requests of one model. All errors are `BorrowError`."""

    def __init__(self, manifest: Manifest) -> None:
        self._inputs: Sequence[InputSpec] = manifest.inputs
        self._groups = groups(manifest.inputs)
        self._names = [spec.name for group in self._groups for spec in group.values]
        self._sizes = [bucket.size for bucket in manifest.buckets]
        self._users = manifest.users  # 0 where there is no user side

    def rows(self, n: object) -> int:
        """`n`, if a bucket has so many rows."""
        rows = _whole(n, "rows")
        most = self._sizes[-1]
        if not 1 <= rows <= most:
            raise BorrowError(
                f"cannot borrow {rows} rows; expected 1 to {most}, the largest bucket (`run` "
                "splits larger requests)"
            )
        return rows

    def find(self, n: object, values: Mapping[str, object], users: object) -> Room:
        """Room for `n` rows of so many users, and so many values of each jagged input by name."""
        rows = self.rows(n)
        users = self._checked_users(users)
        counts = self._counts(values)
        needed = rows
        for group in self._groups:
            needed = max(needed, self._needed(group, counts))
        smallest, bucket = (min(s for s in self._sizes if s >= k) for k in (rows, needed))
        items = {s.name: _items(s, users if s.user else rows, counts) for s in self._inputs}
        return Room(bucket, rows, items, bucket > smallest)

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
        return {name: _whole(values[name], f"values of {name!r}") for name in self._names}

    def _needed(self, group: Group, counts: Mapping[str, int]) -> int:
        """The rows of a bucket that has room for the values of a group."""
        name = group.values[0].name
        total = counts[name]
        for spec in group.values:
            if counts[spec.name] != total:
                raise BorrowError(
                    f"cannot borrow {counts[spec.name]} values of {spec.name!r} and {total} of "
                    f"{name!r}; input {group.division.name!r} divides both"
                )
        rows, what = self._sizes[-1], "the largest bucket"
        if group.user:
            rows, what = self._users, "a request's users"
        most = group.capacity * rows
        if not 0 <= total <= most:
            raise BorrowError(
                f"cannot borrow {total} values of {name!r}; expected 0 to {most}, the room of "
                f"{what}; send fewer, or capture with a capacity above {group.capacity}"
            )
        return 0 if group.user else -(-total // group.capacity)


def _items(spec: InputSpec, rows: int, counts: Mapping[str, int]) -> int:
    if spec.kind == "values":
        return counts[spec.name]
    return rows + (spec.kind == "offsets")


def _whole(number: Any, what: str) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise BorrowError(f"cannot borrow {number!r} {what}; expected a whole number") from None
