"""The CUDA kernel of `grouped_lookup`, in Triton. Imported only where it is launched or compiled.

One program takes some bags of one slot: a feature, or a part of its columns (`LookupSlot` says what
a slot holds). A thread owns one vector of one bag, of 16 bytes or of 8 where elements are bytes,
and walks the ids of the bag with `UNROLL` rows in flight. Where there are few bags, `SPLIT` threads
share one and add up at the end. How many threads a bag needs depends on the width of its table, so
that a narrow table leaves none idle. Rows that are no multiple of a vector are read element by
element. A byte of a quantised row stands for `byte * scale + offset`, of which each row has its
own, and is brought to float32 on the way to its sum.

All addresses are computed in 64 bits. An id outside of its table reads nothing and counts as a row
of zeros, whatever the host has checked: a kernel that reads beyond an allocation takes the CUDA
context of the process with it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def grouped_lookup_kernel(
    weights,
    ids,
    offsets,
    scales,
    slots,
    pairs,
    out,
    FIELDS: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDE: tl.constexpr,
    UNROLL: tl.constexpr,
    JAGGED: tl.constexpr,
    SCALED: tl.constexpr,
    BYTES: tl.constexpr,
):
    """Grid `[blocks of bags, slots]`; `LANES * SPLIT` threads. `WIDE`: elements in a vector.
    `BYTES`: whether rows are quantised."""
    slot = slots + tl.program_id(1).to(tl.int64) * FIELDS
    bags = tl.load(slot)
    shift = tl.load(slot + 14)
    first = tl.program_id(0).to(tl.int64) * (LANES >> shift)
    if first < bags:
        if tl.load(slot + 13) != 0:
            _pool(
                *(weights, ids, offsets, scales, slot, pairs, out, first, bags, shift),
                *(LANES, SPLIT, WIDE, UNROLL, JAGGED, SCALED, BYTES),
            )
        else:
            _pool(
                *(weights, ids, offsets, scales, slot, pairs, out, first, bags, shift),
                *(LANES, SPLIT, 1, UNROLL, JAGGED, SCALED, BYTES),
            )


@triton.jit
def _pool(
    weights,
    ids,
    offsets,
    scales,
    slot,
    pairs,
    out,
    first,
    bags,
    shift,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    VECTOR: tl.constexpr,
    UNROLL: tl.constexpr,
    JAGGED: tl.constexpr,
    SCALED: tl.constexpr,
    BYTES: tl.constexpr,
):
    base = tl.multiple_of(tl.load(slot + 1), VECTOR)
    rows = tl.load(slot + 2)
    stride = tl.multiple_of(tl.load(slot + 3), VECTOR)
    width = tl.load(slot + 4)
    ids_base = tl.load(slot + 5)
    ids_stride = tl.load(slot + 6)
    length = tl.load(slot + 7)
    mean = tl.load(slot + 8)
    out_base = tl.multiple_of(tl.load(slot + 9), VECTOR)
    out_stride = tl.multiple_of(tl.load(slot + 10), VECTOR)

    lane = tl.arange(0, LANES).to(tl.int64)
    bag = first + (lane >> shift)
    column = (lane & ((1 << shift) - 1)) * VECTOR
    live = (bag < bags) & (column < width)
    count = tl.zeros([LANES], tl.int64) + length
    begin = ids_base + bag * ids_stride
    longest = length
    if JAGGED:
        divided = tl.load(slot + 11)
        if divided >= 0:
            # Where a bag begins and ends, kept inside of what the feature may hold (`length`).
            at = divided + bag
            low = tl.load(offsets + at, mask=live, other=0).to(tl.int64)
            high = tl.load(offsets + (at + 1), mask=live, other=0).to(tl.int64)
            low = tl.minimum(tl.maximum(low, 0), length)
            high = tl.minimum(tl.maximum(high, low), length)
            count = high - low
            begin = ids_base + low
            longest = tl.max(count, 0)

    # Rows are added up one step after they were asked for, and ids are read two steps before: each
    # thread then has `UNROLL` rows on their way, which a compiler left to itself does not keep.
    step: tl.constexpr = SPLIT * UNROLL
    part = tl.arange(0, step)
    vector = tl.arange(0, VECTOR)
    total = tl.zeros([step, LANES, VECTOR], tl.float32)
    found = _ids(ids, begin, count, live, part)
    row = _rows(weights, found, rows, base, stride, column, vector)
    if BYTES:
        first_pair = tl.load(slot + 15)
        scale, offset = _pairs(pairs, found, rows, first_pair)
    if SCALED:
        scaled = tl.load(slot + 12)
        first_factor = scaled + begin - ids_base
        factors = tl.where(scaled >= 0, count, 0)  # how many each bag has
        default = tl.where(scaled >= 0, 0.0, 1.0)
        factor = _factors(scales, default, first_factor, factors, live, part)
    found = _ids(ids, begin, count, live, part + step)
    for at in range(2 * step, longest.to(tl.int32) + 2 * step, step):
        ahead = _rows(weights, found, rows, base, stride, column, vector)
        value = row.to(tl.float32)
        if BYTES:
            value = value * scale[:, :, None] + offset[:, :, None]
            scale, offset = _pairs(pairs, found, rows, first_pair)
        found = _ids(ids, begin, count, live, at + part)
        if SCALED:
            value = value * factor[:, :, None]
            factor = _factors(scales, default, first_factor, factors, live, at - step + part)
        total += value
        row = ahead
    pooled = tl.sum(total, 0)
    if mean != 0:
        pooled = pooled / tl.maximum(count, 1).to(tl.float32)[:, None]
    element = out_base + bag * out_stride + column
    tl.store(
        out + (element[:, None] + vector[None, :]),
        pooled.to(out.dtype.element_ty),
        mask=live[:, None],
    )


@triton.jit
def _ids(ids, begin, count, live, position):
    """Ids at `position` of each bag, -1 where it has none: int64 `[positions, LANES]`."""
    position = position.to(tl.int64)
    inside = live[None, :] & (position[:, None] < count[None, :])
    return tl.load(ids + begin[None, :] + position[:, None], mask=inside, other=-1).to(tl.int64)


@triton.jit
def _rows(weights, found, rows, base, stride, column, vector):
    """One vector of each row, zeros where the id is outside of the table."""
    inside = (found >= 0) & (found < rows)
    element = base + found * stride + column[None, :]
    element = element[:, :, None] + vector[None, None, :]
    return tl.load(weights + element, mask=inside[:, :, None], other=0.0)


@triton.jit
def _pairs(pairs, found, rows, first):
    """Scale and offset of each row, zeros where the id is outside of the table."""
    inside = (found >= 0) & (found < rows)
    at = 2 * (first + found)
    both = tl.load(pairs + (at[:, :, None] + tl.arange(0, 2)), mask=inside[:, :, None], other=0.0)
    return tl.split(both)


@triton.jit
def _factors(scales, default, begin, count, live, position):
    """What the row of each id is multiplied by; `default` where there is no factor."""
    position = position.to(tl.int64)
    inside = live[None, :] & (position[:, None] < count[None, :])
    at = begin[None, :] + position[:, None]
    return tl.load(scales + at, mask=inside, other=0.0).to(tl.float32) + default
