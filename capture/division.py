"""Offsets and lengths of jagged inputs as tensors: where rows begin, and back again."""

from __future__ import annotations

import torch

from recreplay.runtime.spec import InputSpec


def starts_of(spec: InputSpec, division: torch.Tensor, total: int) -> torch.Tensor:
    """`[rows + 1]`: where each row's values begin, and their number `total` at the end."""
    if spec.kind == "lengths":
        return torch.cat([torch.zeros(1, dtype=torch.int64), division.cumsum(0)])
    if spec.kind == "starts":
        return torch.cat([division, torch.tensor([total])])
    return division


def division_of(spec: InputSpec, lengths: torch.Tensor) -> torch.Tensor:
    """The input `spec` for rows that have so many values."""
    if spec.kind == "lengths":
        return lengths
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return ends if spec.kind == "offsets" else ends[:-1]
