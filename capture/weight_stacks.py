"""Weights laid end to end in one storage, of which each stays a view by rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, prod

import torch

_ALIGNMENT = 64  # bytes at which each weight of a stack begins: one cache line


@dataclass(frozen=True)
class WeightStack:
    """`starts[i]` is the first row of `members[i]`; the storage is `[rows, *row]`.

    A flat storage has rows of one element, `row` is empty, and members have any width.
    """

    name: str
    members: tuple[str, ...]
    starts: tuple[int, ...]
    rows: int
    row: tuple[int, ...]

    def store(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The storage, filled; rows between two weights are zero."""
        storage = torch.zeros((self.rows, *self.row), dtype=state[self.members[0]].dtype)
        flat, width = storage.view(-1), prod(self.row)
        for name, start in zip(self.members, self.starts, strict=True):
            weight = state[name].detach().reshape(-1)
            flat[start * width : start * width + len(weight)].copy_(weight)
        return storage


def lay_end_to_end(
    name: str, rows: Mapping[str, int], row: tuple[int, ...], dtype: torch.dtype
) -> WeightStack:
    """The stack of weights `[rows[member], *row]`, in the order given.

    Each begins at a multiple of 64 bytes, so that compiled code may read it as a tensor of its own
    with aligned loads.
    """
    step = _ALIGNMENT // gcd(_ALIGNMENT, prod(row) * dtype.itemsize)
    starts, end = [], 0
    for count in rows.values():
        starts.append(end)
        end += -(-count // step) * step
    return WeightStack(name, tuple(rows), tuple(starts), end, row)
