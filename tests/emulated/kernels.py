"""Our own CUDA kernels on the emulated device: what they stand for, by plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from emulated.operators import Emulator, on_host
from torch.utils._pytree import tree_map


@contextmanager
def replaced(emulator: Emulator) -> Iterator[None]:
    """`grouped_lookup` launches a kernel that does what its CPU side does."""
    from recreplay.runtime import grouped_lookup

    usual = grouped_lookup.launch

    def launch(kernel: Any, weights: torch.Tensor, *rest: Any) -> torch.Tensor:
        if not weights.is_cuda:
            return usual(kernel, weights, *rest)
        elements, widens = rest[5], rest[-1]
        out = weights.new_empty([elements], dtype=torch.float32 if widens else None)
        room, given = on_host(out), tree_map(on_host, (weights, *rest))
        emulator.launch("grouped_lookup_kernel", lambda: room.copy_(grouped_lookup.look_up(*given)))
        return out

    with patch.object(grouped_lookup, "launch", launch):
        yield
