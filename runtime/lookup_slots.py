"""What a grouped lookup is told about each feature, as data: `LookupSlot`, and its 128 bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace

import torch
from torch import Tensor

FIELDS = 16  # int64 numbers of a slot in memory: one cache line of 128 bytes
THREADS = 128
UNROLL = 4  # rows that a thread has in flight
SPLITS = (1, 2, 4, 8)  # how many threads may share a bag
VECTOR = 16  # bytes that a thread reads at once


@dataclass(frozen=True, slots=True)
class LookupSlot:
    """Bags of one table: how they are read and where they go. All numbers count elements.

    Bag b pools the ids `ids_base + b * ids_stride + [0, length)`; of jagged bags, those from
    `offsets[offsets_base + b]` to the next offset, counted from `ids_base`, where `length` is the
    room that all of them have. Row r begins at `base + r * stride`, of which `width` columns are
    written to `out_base + b * out_stride`. Ids outside `[0, rows)` count as rows of zeros. The
    factor of an id is as far from `scales_base` as the id is from `ids_base`.

    `wide`: whether all rows can be moved by vectors of 16 bytes; `lanes_log2`: threads of a bag.
    `for_threads` finds both.
    """

    bags: int
    base: int
    rows: int
    stride: int
    width: int
    ids_base: int
    ids_stride: int
    length: int
    mean: bool
    out_base: int
    out_stride: int
    offsets_base: int = -1
    scales_base: int = -1
    wide: bool = False
    lanes_log2: int = 0


def for_threads(slot: LookupSlot, itemsize: int, split: int) -> list[LookupSlot]:
    """The slot as threads take it, `split` to a vector: several slots where a row is so wide that
    the threads of a program do not cover it. `itemsize`: bytes of an element."""
    vector = VECTOR // itemsize
    wide = all(n % vector == 0 for n in (slot.base, slot.stride, slot.width))
    wide = wide and slot.out_base % vector == slot.out_stride % vector == 0
    step = vector if wide else 1
    most = THREADS // split * step
    found = []
    for column in range(0, slot.width, most):
        width = min(most, slot.width - column)
        found.append(
            replace(
                slot,
                base=slot.base + column,
                out_base=slot.out_base + column,
                width=width,
                wide=wide,
                lanes_log2=(-(-width // step) - 1).bit_length(),
            )
        )
    return found


def bags_of_a_program(slots: Iterable[LookupSlot], split: int) -> int:
    """The fewest bags that one program takes of any slot."""
    return THREADS // split >> max(slot.lanes_log2 for slot in slots)


def pack_slots(slots: Iterable[LookupSlot]) -> Tensor:
    """Slots as the operator takes them: int64 `[slots, FIELDS]`."""
    rows = [[int(number) for number in astuple(slot)] for slot in slots]
    return torch.tensor([row + [0] * (FIELDS - len(row)) for row in rows], dtype=torch.int64)


def unpack_slots(slots: Tensor) -> list[LookupSlot]:
    """Inverse of `pack_slots`."""
    found = []
    for row in slots.tolist():
        slot = LookupSlot(*row[: len(fields(LookupSlot))])
        found.append(replace(slot, mean=bool(slot.mean), wide=bool(slot.wide)))
    return found
