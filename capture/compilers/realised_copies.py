"""Copies that are made: a tensor that is laid out anew is written before it is read.

Inductor takes a copy for one more operator of the loop that reads it. Where that is a product, each
value is computed for every column it meets, the lookup with its checks and all: a layer of 320 to
64 of which each domain has its own takes 276 us for 128 items so and 95 with the copy, outer
products of 20 features 1,356 and 1,010 (one Zen 5 core).
"""

from __future__ import annotations

from typing import Any

import torch


def realise_copies() -> None:
    """Have every package of this process compiled so."""
    from torch._inductor.lowering import lowerings

    copy = torch.ops.aten.clone.default
    usual = lowerings[copy]

    def write(value: Any, *, memory_format: torch.memory_format | None = None) -> Any:
        made = usual(value, memory_format=memory_format)
        if memory_format is torch.contiguous_format:
            made.realize()
        return made

    lowerings[copy] = write
