"""What capture is told of a model's inputs: which are jagged, and which belong to the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch

from recreplay.runtime.errors import CaptureError
from recreplay.runtime.spec import USER_INDEX, Kind

SLACK = 2.0  # room for values per row, in multiples of the example's mean


@dataclass(frozen=True)
class Jagged:
    """Values `[N]` of all rows end to end, and the input that divides them: one of

    - `offsets`: `[B + 1]`, or `[B]` without the number of values at the end;
    - `lengths`: `[B]`.

    A bucket of B rows has room for `capacity * B` values; by default twice the example's mean,
    rounded up. Several inputs of values may share one input of offsets or lengths.
    """

    values: str
    offsets: str | None = None
    lengths: str | None = None
    capacity: int | None = None

    def __post_init__(self) -> None:
        if (self.offsets is None) == (self.lengths is None):
            raise CaptureError(
                f"jagged input {self.values!r} needs either offsets or lengths; got "
                f"{'both' if self.offsets else 'neither'}"
            )
        if self.capacity is not None and self.capacity < 1:
            raise CaptureError(
                f"the capacity of jagged input {self.values!r} is {self.capacity}; expected 1 or "
                "more values a row"
            )

    @property
    def division(self) -> str:
        return str(self.offsets or self.lengths)


@dataclass(frozen=True)
class Declared:
    """What was said of one input, with the example looked at: see `InputSpec`."""

    kind: Kind = "rows"
    user: bool = False
    along: str = ""
    capacity: int = 0


def jagged_of(model: object, jagged: Sequence[Jagged] | None) -> Sequence[Jagged]:
    """What was said, or else what the model itself says: `jagged_inputs`, values to offsets. Or
    what each jagged input is, of which the others stay where something is said of one."""
    own: Mapping[str, str] | Sequence[Jagged] = getattr(model, "jagged_inputs", ())
    if not isinstance(own, Mapping):
        said = list(jagged or ())
        return [*said, *(j for j in own if j.values not in {s.values for s in said})]
    if jagged is not None:
        return jagged
    return [Jagged(values, offsets=offsets) for values, offsets in own.items()]


def declare(
    example: Mapping[str, torch.Tensor],
    jagged: Sequence[Jagged],
    user_inputs: Sequence[str],
    users: int,
    row_mask: str | None = None,
) -> dict[str, Declared]:
    """Every input of `example` with its kind; raises `CaptureError` where that makes no sense."""
    _check_names(example, jagged, user_inputs, users)
    _check_mask(example, jagged, user_inputs, users, row_mask)
    values = {j.values for j in jagged}
    by_division: dict[str, list[Jagged]] = {}
    for j in jagged:
        by_division.setdefault(j.division, []).append(j)
    plain = [t for name, t in example.items() if name not in values and name not in by_division]
    declared = {name: Declared(user=name in user_inputs) for name in example}
    for division, members in by_division.items():
        user = division in user_inputs
        wrong = [j.values for j in members if (j.values in user_inputs) != user]
        if wrong:
            raise CaptureError(
                f"jagged input {wrong[0]!r} and its {division!r} must both be user inputs, or "
                "neither"
            )
        kind = _kind(members[0], example, len(plain[0]) if plain else None)
        declared[division] = Declared(kind, user)
        rows = len(example[division]) - (kind == "offsets")
        capacity = _capacity(members, example, rows)
        for j in members:
            declared[j.values] = Declared("values", user, division, capacity)
    if row_mask is not None:
        declared[row_mask] = Declared("mask")
    return declared


def _check_names(
    example: Mapping[str, torch.Tensor],
    jagged: Sequence[Jagged],
    user_inputs: Sequence[str],
    users: int,
) -> None:
    named = [*user_inputs, *(name for j in jagged for name in (j.values, j.division))]
    for name in named:
        if name not in example:
            raise CaptureError(
                f"the model has no input {name!r}; its inputs are {', '.join(example)}"
            )
    values = [j.values for j in jagged]
    repeated = {name for name in values if values.count(name) > 1}
    repeated |= set(values) & {j.division for j in jagged}
    if repeated:
        raise CaptureError(f"input {min(repeated)!r} is declared as jagged in two ways")
    if len({(j.division, j.lengths is None) for j in jagged}) != len({j.division for j in jagged}):
        raise CaptureError("one input cannot be both offsets and lengths of jagged values")
    if users < 1:
        raise CaptureError(f"users must be 1 or more; got {users}")
    if users > 1 and not user_inputs:
        raise CaptureError(f"users={users} needs user_inputs: which inputs have a row a user")
    if users > 1 and USER_INDEX in example:
        raise CaptureError(
            f"the model has an input named {USER_INDEX!r}, which is what the input that says the "
            "user of each row is called; rename it"
        )
    if users == 1 and user_inputs and set(example) <= set(user_inputs):
        raise CaptureError(
            "all inputs are user inputs, so nothing says how many rows a request has; with one "
            "row a request they need not be declared"
        )


def _check_mask(
    example: Mapping[str, torch.Tensor],
    jagged: Sequence[Jagged],
    user_inputs: Sequence[str],
    users: int,
    row_mask: str | None,
) -> None:
    if row_mask is None:
        return
    if not isinstance(row_mask, str) or row_mask not in example:
        raise CaptureError(
            f"the model has no input {row_mask!r}, which row_mask names; its inputs are "
            f"{', '.join(example)}"
        )
    if row_mask in user_inputs or any(row_mask in (j.values, j.division) for j in jagged):
        raise CaptureError(f"input {row_mask!r} cannot be a row mask and something else as well")
    mask = example[row_mask]
    if mask.dtype != torch.bool or mask.ndim != 1 or not bool(mask.all()):
        raise CaptureError(
            f"row mask {row_mask!r} is {str(mask.dtype).removeprefix('torch.')}"
            f"{list(mask.shape)} in the example; expected bool [B], all true: no row of the "
            "example is padding"
        )
    if users == 1 and set(example) <= {row_mask, *user_inputs}:
        others = " and the user's" if user_inputs else ""
        raise CaptureError(
            f"the model has no input besides the row mask {row_mask!r}{others}, so nothing says "
            "how many rows a request has"
        )


def _kind(jagged: Jagged, example: Mapping[str, torch.Tensor], batch: int | None) -> Kind:
    name, values = jagged.division, example[jagged.values]
    division = example[name]
    if values.ndim != 1 or division.ndim != 1:
        wrong = name if values.ndim == 1 else jagged.values
        raise CaptureError(
            f"jagged input {wrong!r} has shape {tuple(example[wrong].shape)}; values, offsets and "
            "lengths have one dimension"
        )
    if division.dtype not in (torch.int32, torch.int64):
        raise CaptureError(f"input {name!r} has dtype {division.dtype}; expected int64 or int32")
    total, items = len(values), len(division)
    if jagged.lengths is not None:
        if int(division.sum()) != total or bool((division < 0).any()):
            raise CaptureError(
                f"example lengths {name!r} add up to {int(division.sum())}; {jagged.values!r} has "
                f"{total} values"
            )
        return "lengths"
    # Without any other input, the last offset tells whether it is the number of values.
    ends = items and int(division[-1]) == total
    with_end = ends if batch is None else items == batch + 1
    if batch is not None and items not in (batch, batch + 1):
        raise CaptureError(
            f"example offsets {name!r} have {items} items for a batch of {batch}; expected "
            f"{batch + 1}, or {batch} without the number of values at the end"
        )
    falls = bool((division[1:] < division[:-1]).any())
    if not items or division[0] != 0 or falls or division[-1] > total or (with_end and not ends):
        raise CaptureError(
            f"example offsets {name!r} do not divide the {total} values of {jagged.values!r}: they "
            "begin with 0, never fall, and end with the number of values"
        )
    return "offsets" if with_end else "starts"


def _capacity(members: Sequence[Jagged], example: Mapping[str, torch.Tensor], rows: int) -> int:
    sizes = {j.values: len(example[j.values]) for j in members}
    total = sizes[members[0].values]
    for name, count in sizes.items():
        if count != total:
            raise CaptureError(
                f"example input {name!r} has {count} values, but {members[0].values!r} has "
                f"{total}; {members[0].division!r} divides both"
            )
        if count < 2:
            raise CaptureError(
                f"example input {name!r} has {count} values; 2 or more are needed, because "
                "torch.export takes a size of 0 or 1 for a constant"
            )
    given = [j.capacity for j in members if j.capacity is not None]
    return max(given) if given else usual_capacity(total, rows)


def usual_capacity(values: int, rows: int) -> int:
    """Room per row where `rows` rows had so many values.

    A whole number, so that the room of a bucket is a multiple of its rows and one compiled package
    serves all buckets.
    """
    return max(1, ceil(SLACK * values / rows))
