"""What a grouped lookup is told about each feature, as data: `LookupSlot`, and its 128 bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

FIELDS = 16  # int64 numbers of a slot in memory: one cache line of 128 bytes
THREADS = 128
UNROLL = 4  # rows that a thread has in flight
SPLITS = (1, 2, 4, 8)  # how many threads may share a bag
_VECTOR = 16  # bytes that a thread reads at once


def vector(itemsize: int) -> int:
    """Elements that a thread reads at once: 16 bytes of them, but no more than 8, since it adds
    each up in a register of its own for each of `UNROLL` rows."""
    return min(_VECTOR // itemsize, 8)


@dataclass(frozen=True, slots=True)
class LookupSlot:
    """Bags of one table: how they are read and where they go. All numbers count elements.

    Bag b pools the ids `ids_base + b * ids_stride + [0, length)`; of jagged bags, those from
    `offsets[offsets_base + b]` to the next offset, counted from `ids_base`, where `length` is the
    room that all of them have. Row r begins at `base + r * stride`, of which `width` columns are
    written to `out_base + b * out_stride`. Ids outside `[0, rows)` count as rows of zeros. The
    factor of an id is as far from `scales_base` as the id is from `ids_base`. Where rows are bytes,
    the scale and offset of row r are row `pairs_base + r` of their own storage.

    `wide`: whether all rows can be moved by whole vectors; `lanes_log2`: threads of a bag.
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
    pairs_base: int = 0


def for_threads(slot: LookupSlot, itemsize: int, split: int) -> list[LookupSlot]:
    """The slot as threads take it, `split` to a vector: several slots where a row is so wide that
    the threads of a program do not cover it. `itemsize`: bytes of an element."""
    whole = vector(itemsize)
    wide = all(n % whole == 0 for n in (slot.base, slot.stride, slot.width))
    wide = wide and slot.out_base % whole == slot.out_stride % whole == 0
    step = whole if wide else 1
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
    return torch.tensor([[int(number) for number in astuple(s)] for s in slots], dtype=torch.int64)


def unpack_slots(slots: Tensor) -> list[LookupSlot]:
    """Inverse of `pack_slots`."""
    found = []
    for row in slots.tolist():
        slot = LookupSlot(*row)
        found.append(replace(slot, mean=bool(slot.mean), wide=bool(slot.wide)))
    return found
