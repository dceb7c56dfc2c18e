"""Inputs of one shape side by side in staging memory, which are padded and checked as one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any

import numpy as np

from recreplay.runtime.manifest import Bucket
from recreplay.runtime.spec import DTYPES, IdBound, Slot

Array = np.ndarray[Any, Any]


def blocks(bucket: Bucket) -> list[list[Slot]]:
    """The inputs of a bucket by where they lie: staged neighbours of one shape together."""
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


@dataclass(frozen=True)
class Limits:
    """Ids of each of several features or columns: `least[i]` and more, and below `end[i]`."""

    least: Array
    end: Array


@dataclass(frozen=True)
class IdColumns:
    """Places in a row of input `at` of a block that are ids, and what is in range in each."""

    at: int
    columns: tuple[int, ...]
    limits: Limits


@dataclass(frozen=True)
class Block:
    """Inputs of one shape that lie side by side: `view`, which is `slot` of memory, is
    `[F, B, ...]`.

    `limits` are of each input's ids, unsigned, and None where they look up none. `columns` are of
    inputs of which only some columns do.
    """

    names: tuple[str, ...]
    slot: Slot
    view: Array
    limits: Limits | None
    columns: tuple[IdColumns, ...]


def make_block(
    run: list[Slot], whole: dict[str, IdBound], parts: dict[str, list[IdBound]], memory: Array
) -> Block:
    first = run[0]
    dtype = DTYPES[first.dtype]
    slot = Slot("", first.dtype, (len(run), *first.shape), first.offset)
    names = tuple(s.name for s in run)
    limits = None
    if all(name in whole for name in names):
        # The ids are compared as unsigned numbers, where negative ones are very large.
        most = 1 << 8 * dtype.itemsize - (dtype.kind == "i")
        bounds = [whole[name] for name in names]
        limits = _limits([(min(b.least, most), min(b.rows, most)) for b in bounds], np.uint64)
    places = np.arange(prod(first.shape[1:])).reshape(1, *first.shape[1:])
    columns = []
    for at, name in enumerate(names):
        bound_of = [(column, b) for b in parts.get(name, ()) for column in b.of(places).flat]
        if bound_of:
            known = _limits([(b.least, b.rows) for _, b in bound_of], np.int64)
            columns.append(IdColumns(at, tuple(int(column) for column, _ in bound_of), known))
    return Block(names, slot, slot.view(memory), limits, tuple(columns))


def _limits(pairs: list[tuple[int, int]], dtype: type) -> Limits:
    least, end = np.array(pairs, dtype=dtype).T
    return Limits(least, end)
