"""Weights on the device: stored once, read by every bucket and lane, at addresses that never change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from recreplay.runtime.manifest import TableView


def load_tensors(path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file in memory of their own, aligned as the allocator does it."""
    loaded = {}
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            # A copy in any case: the file's bytes are mapped, and its tensors not aligned.
            loaded[name] = tensor.to(device) if device.type != "cpu" else tensor.clone()
    return loaded


def with_views(
    stored: Mapping[str, torch.Tensor], tables: Mapping[str, TableView]
) -> dict[str, torch.Tensor]:
    """The stored weights and, as views by rows, the tables that lie inside of them."""
    views = {
        name: stored[view.storage][view.start : view.start + view.rows]
        for name, view in tables.items()
    }
    return {**stored, **views}
