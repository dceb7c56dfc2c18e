"""Offsets and lengths of jagged inputs as tensors: where rows begin, and back again."""

from __future__ import annotations

import torch

from recreplay.runtime.spec import InputSpec


def offsets_of(lengths: torch.Tensor) -> torch.Tensor:
    """`[B]` to `[B + 1]`: where the values of each row begin, and where the last ones end."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=lengths.dtype)])


def starts_of(spec: InputSpec, division: torch.Tensor, total: int) -> torch.Tensor:
    """`[rows + 1]`: where each row's values begin, and their number `total` at the end."""
    if spec.kind == "lengths":
        return offsets_of(division.long())
    if spec.kind == "starts":
        return torch.cat([division, torch.tensor([total])])
    return division


def division_of(spec: InputSpec, lengths: torch.Tensor) -> torch.Tensor:
    """The input `spec` for rows that have so many values."""
    if spec.kind == "lengths":
        return lengths
    ends = offsets_of(lengths.long())
    return ends if spec.kind == "offsets" else ends[:-1]
