"""Weights on the device: stored once, read by every bucket and lane, at addresses that never
change."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from recreplay.runtime.lowered import SCALES
from recreplay.runtime.manifest import TableView

_HUGE = 2 << 20  # bytes of a huge page on x86-64 and most of aarch64


def load_tensors(path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file in memory of their own, aligned as the allocator does
    it."""
    loaded = {}
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            loaded[name] = tensor.to(device) if device.type != "cpu" else _resident(tensor)
    return loaded


def _resident(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory of its own; the file's bytes are mapped, and its tensors are not aligned.

    Large tensors go to huge pages where the system grants them: a lookup reads rows at random, and
    with pages of 4 KiB each row costs a walk through the page table besides its own cache miss.
    """
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor.clone()
    memory = mmap.mmap(-1, nbytes + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    start = -raw.data_ptr() % _HUGE
    copy = raw[start : start + nbytes].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)


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
