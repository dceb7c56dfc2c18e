"""Weights on the device: stored once, read by every bucket and lane, at addresses that never
change."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from recreplay.runtime.huge_pages import HugePages
from recreplay.runtime.lowered import SCALES
from recreplay.runtime.manifest import TableView


def load_tensors(path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file in memory of their own: the file's bytes are mapped, and
    its tensors are not aligned."""
    loaded, memory = {}, HugePages()
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            loaded[name] = tensor.to(device) if device.type != "cpu" else memory.copy(tensor)
    return loaded


def memory_of(tensor: torch.Tensor) -> object:
    """The same of two tensors that are one; of empty ones, nothing is the same."""
    if not tensor.numel():
        return object()
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def with_views(
    stored: Mapping[str, torch.Tensor], tables: Mapping[str, TableView]
) -> dict[str, torch.Tensor]:
    """The stored weights and, as views by rows, the tables that lie inside of them."""
    weights = dict(stored)
    for name, view in tables.items():
        end = view.start + view.rows * prod(view.row)
        for kind in ("", SCALES):
            if kind + view.storage in weights:
                rows = weights[kind + view.storage][view.start : end]
                weights[kind + name] = rows.view(view.rows, *view.row) if view.row else rows
    return weights
