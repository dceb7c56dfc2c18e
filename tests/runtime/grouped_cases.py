"""Random features for a grouped lookup, what torch computes for them, and how to launch one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from recreplay.runtime.lookup_slots import (
    LookupSlot,
    bags_of_a_program,
    for_threads,
    pack_slots,
)
from recreplay.runtime.lowered import INT8, lower


@dataclass(frozen=True)
class Feature:
    """One table and its bags. `lengths` are given where bags are jagged, with `room` behind."""

    rows: int
    width: int
    length: int
    lengths: tuple[int, ...] | None = None
    room: int = 0
    mean: bool = False
    scaled: bool = False


WIDTHS = st.one_of(st.integers(1, 20), st.sampled_from([32, 48, 64, 100, 128, 129, 256, 257]))


@st.composite
def features(draw: st.DrawFn, batch: int) -> Feature:
    rows, width = draw(st.integers(1, 40)), draw(WIDTHS)
    if draw(st.booleans()):
        lengths = tuple(draw(st.lists(st.integers(0, 9), min_size=batch, max_size=batch)))
        room = draw(st.integers(0, 5))
        length = 0
    else:
        lengths, room, length = None, 0, draw(st.one_of(st.integers(1, 5), st.integers(6, 50)))
    pooling = draw(st.sampled_from(["sum", "mean", "scaled"]))
    return Feature(rows, width, length, lengths, room, pooling == "mean", pooling == "scaled")


@dataclass(frozen=True)
class Launch:
    """What the operator takes, the columns of each feature, and what they should hold."""

    weights: Tensor
    ids: Tensor
    offsets: Tensor | None
    scales: Tensor | None
    slots: Tensor
    pairs: Tensor | None
    batch: int
    width: int
    split: int
    widens: bool
    wanted: Tensor

    def arguments(self) -> tuple[Any, ...]:
        from recreplay.runtime.lookup_slots import unpack_slots

        slots = unpack_slots(self.slots)
        return (
            *(self.weights, self.ids, self.offsets, self.scales, self.slots, self.pairs),
            *(self.batch * self.width, self.batch, bags_of_a_program(slots, self.split)),
            *(self.split, self.widens),
        )


def build(
    given: list[Feature],
    batch: int,
    split: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    ids_dtype: torch.dtype = torch.int64,
    bad: float = 0.0,
    widens: bool = False,
) -> Launch:
    """Features as columns of one matrix `[batch, width]`; `bad` is the share of bad ids.

    Tables of uint8 are int8 rows. With `widens`, and of those, the result is float32.
    """
    draw = torch.Generator().manual_seed(seed)
    quantised = dtype == torch.uint8
    widens = widens or quantised
    unit = 64 // dtype.itemsize
    width = sum(f.width for f in given)
    slots: list[LookupSlot] = []
    tables, ids, offsets, scales, pairs, wanted = [], [], [], [], [], []
    base = ids_base = pairs_base = column = 0
    for feature in given:
        table = torch.randn(feature.rows, feature.width, generator=draw)
        if quantised:
            stored, pair = lower(table, INT8)
            table = stored.float() * pair[:, :1] + pair[:, 1:]
            pairs.append(F.pad(pair, (0, 0, 0, -len(pair) % 8)))
        else:
            table = stored = table.to(dtype)
        if feature.lengths is None:
            lengths = torch.full((batch,), feature.length)
        else:
            lengths = torch.tensor(feature.lengths, dtype=torch.int64)
        count = int(lengths.sum()) + feature.room
        mine = torch.randint(0, feature.rows, (count,), generator=draw)
        wrong = torch.rand(count, generator=draw) < bad
        limit = torch.iinfo(ids_dtype)
        odd = torch.tensor([-1, limit.min, feature.rows, limit.max, limit.max // 3])
        mine = torch.where(wrong, odd[torch.randint(0, 5, (count,), generator=draw)], mine)
        factor = torch.randn(count, generator=draw).to(torch.float32 if widens else dtype)
        begins = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        slot = LookupSlot(
            bags=batch,
            base=base,
            rows=feature.rows,
            stride=feature.width,
            width=feature.width,
            ids_base=ids_base,
            ids_stride=feature.length,
            length=feature.length if feature.lengths is None else count,
            mean=feature.mean,
            out_base=column,
            out_stride=width,
            offsets_base=-1 if feature.lengths is None else sum(len(o) for o in offsets),
            scales_base=ids_base if feature.scaled else -1,
            pairs_base=pairs_base,
        )
        slots += for_threads(slot, dtype.itemsize, split)
        wanted.append(_pooled(table, mine, begins, factor, feature))
        tables.append(F.pad(stored.reshape(-1), (0, -stored.numel() % unit)))
        pairs_base += len(pairs[-1]) if quantised else 0
        ids.append(mine.to(ids_dtype))
        scales.append(factor)
        if feature.lengths is not None:
            offsets.append(torch.cat([begins, torch.tensor([count])]))
        base += len(tables[-1])
        ids_base += count
        column += feature.width
    return Launch(
        torch.cat(tables),
        torch.cat(ids),
        torch.cat(offsets) if offsets else None,
        torch.cat(scales) if any(f.scaled for f in given) else None,
        pack_slots(slots),
        torch.cat(pairs) if quantised else None,
        batch,
        width,
        split,
        widens,
        torch.cat(wanted, dim=1),
    )


def _pooled(table: Tensor, ids: Tensor, begins: Tensor, factor: Tensor, feature: Feature) -> Tensor:
    """What torch's own operator gives, a bad id being a row of zeros behind the table."""
    wide = torch.cat([table.float(), torch.zeros(1, feature.width)])
    held = torch.where((ids >= 0) & (ids < feature.rows), ids, feature.rows)[: begins[-1]]
    return F.embedding_bag(
        held,
        wide,
        begins,
        mode="mean" if feature.mean else "sum",
        per_sample_weights=factor[: begins[-1]].float() if feature.scaled else None,
        include_last_offset=True,
    )
