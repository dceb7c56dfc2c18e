"""`recreplay::grouped_lookup`: the lookups of many tables of any width as one operator.

Tables of one dtype lie in one flat storage, and each is found by a 64-bit offset; of tables that
are stored as int8 rows (`recreplay.runtime.lowered`), scales and offsets lie in a second one. What
is to be looked up where is data (`LookupSlot`), so that one compiled kernel serves every model. The
result is one flat buffer in which each feature has its place: columns of a matrix that the trunk
reads, so that nothing is left to concatenate, or rows of its own.

On CUDA it is the Triton kernel of `grouped_kernel`, which AOTInductor packages carry as a cubin:
Triton is needed where a model is captured, and where eager segments call it. On the CPU it is
plain torch, for tests and for tracing; nothing that is captured for the CPU uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.library import wrap_triton

from recreplay.runtime.errors import EnvironmentMismatchError
from recreplay.runtime.lookup_slots import FIELDS, THREADS, UNROLL, unpack_slots, vector


def launch(
    kernel: Any,
    weights: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    scales: Tensor | None,
    slots: Tensor,
    pairs: Tensor | None,
    elements: int,
    bags: int,
    narrowest: int,
    split: int,
    widens: bool,
) -> Tensor:
    """`kernel`: that of `grouped_kernel`, wrapped for tracing or not."""
    out = weights.new_empty([elements], dtype=torch.float32 if widens else None)
    lanes = THREADS // split
    # Where a slot takes fewer programs than the widest one, the rest of its programs end at once.
    grid = ((bags + narrowest - 1) // narrowest, slots.shape[0], 1)
    kernel[grid](
        weights,
        ids,
        slots if offsets is None else offsets,
        weights if scales is None else scales,
        slots,
        weights if pairs is None else pairs,
        out,
        FIELDS=FIELDS,
        LANES=lanes,
        SPLIT=split,
        WIDE=vector(weights.element_size()),
        UNROLL=UNROLL,
        JAGGED=offsets is not None,
        SCALED=scales is not None,
        BYTES=pairs is not None,
        num_warps=THREADS // 32,
    )
    return out


@torch.library.triton_op("recreplay::grouped_lookup", mutates_args={})
def grouped_lookup(
    weights: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    scales: Tensor | None,
    slots: Tensor,
    pairs: Tensor | None,
    elements: int,
    bags: int,
    narrowest: int,
    split: int,
    widens: bool,
) -> Tensor:
    """Pooled rows of all slots: flat `[elements]`, undefined between.

    - `weights`: flat storage, float32, float16, bfloat16 or, with `pairs`, uint8, from an address
      that 16 divides.
    - `ids`: int32 or int64, flat; `offsets`: the same or None.
    - `scales`: what each row is multiplied by, of the result's dtype, or None.
    - `slots`: int64 `[slots, FIELDS]` (`pack_slots`).
    - `pairs`: scale and offset of each quantised row, float32 `[rows, 2]`, or None.
    - `bags`: the most bags of a slot; `narrowest`: the fewest bags that one program takes, which is
      `THREADS / split` over the lanes of a bag; `split`: threads that share a bag, of `SPLITS`.
    - `widens`: whether the result is float32, or of the dtype of `weights`.

    Sums are taken in float32.
    """
    try:
        from recreplay.runtime.grouped_kernel import grouped_lookup_kernel
    except ImportError as error:
        raise EnvironmentMismatchError(
            f"grouped_lookup compiles its kernel by Triton, which cannot be imported ({error}); "
            "pip install triton, or capture the model with the inductor compiler, whose packages "
            "hold the kernel"
        ) from error
    kernel = wrap_triton(grouped_lookup_kernel)
    return launch(
        *(kernel, weights, ids, offsets, scales, slots, pairs),
        *(elements, bags, narrowest, split, widens),
    )


def look_up(
    weights: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    scales: Tensor | None,
    slots: Tensor,
    pairs: Tensor | None,
    elements: int,
    bags: int,
    narrowest: int,
    split: int,
    widens: bool,
) -> Tensor:
    """The operator in plain torch, slot by slot; numbers that only say how to run are ignored."""
    out = weights.new_zeros([elements], dtype=torch.float32 if widens else None)
    for slot in unpack_slots(slots):
        bag = torch.arange(slot.bags)
        if slot.offsets_base < 0:
            begin = slot.ids_base + bag * slot.ids_stride
            count = torch.full_like(bag, slot.length)
        else:
            assert offsets is not None
            ends = offsets[slot.offsets_base : slot.offsets_base + slot.bags + 1].to(torch.int64)
            low = ends[:-1].clamp(0, slot.length)
            count = torch.maximum(ends[1:], low).clamp(max=slot.length) - low
            begin = slot.ids_base + low
        owner = bag.repeat_interleave(count)
        within = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner]
        place = begin[owner] + within
        found = ids[place].to(torch.int64)
        valid = (found >= 0) & (found < slot.rows)
        found = found.where(valid, 0)
        first = slot.base + found * slot.stride
        rows = weights[first[:, None] + torch.arange(slot.width)].float()
        if pairs is not None:
            scale, offset = pairs[slot.pairs_base + found].unsqueeze(2).unbind(1)
            rows = rows * scale + offset
        if slot.scales_base >= 0:
            assert scales is not None
            rows = rows * scales[slot.scales_base + place - slot.ids_base].float()[:, None]
        rows = rows.where(valid[:, None], 0.0)
        pooled = torch.zeros(slot.bags, slot.width).index_add_(0, owner, rows)
        if slot.mean:
            pooled = pooled / count.clamp(min=1)[:, None]
        at = slot.out_base + bag[:, None] * slot.out_stride + torch.arange(slot.width)
        out[at] = pooled.to(out.dtype)
    return out


grouped_lookup.register_kernel("cpu")(look_up)


@grouped_lookup.register_fake  # type: ignore[untyped-decorator, unused-ignore]
def _(
    weights: Tensor,
    ids: Any,
    offsets: Any,
    scales: Any,
    slots: Any,
    pairs: Any,
    elements: int,
    bags: int,
    narrowest: int,
    split: int,
    widens: bool,
) -> Tensor:
    return weights.new_empty([elements], dtype=torch.float32 if widens else None)


def grouped_lookup_operator() -> Callable[..., Any]:
    """The operator as graphs hold it."""
    return cast("Callable[..., Any]", torch.ops.recreplay.grouped_lookup.default)
