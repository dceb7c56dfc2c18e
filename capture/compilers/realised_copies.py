"""What is made once: tensors that are laid out anew, and numbers that are looked up.

Inductor takes a copy for one more operator of the loop that reads it. Where that is a product, each
value is computed for every column it meets, the lookup with its checks and all: a layer of 320 to
64 of which each domain has its own takes 276 us for 128 items so and 95 with the copy, outer
products of 20 features 1,356 and 1,010 (one Zen 5 core). Numbers of a table that has nothing else
are read one by one, with a check each, and for each head anew where they are a bias of attention:
HSTU, with a bias by the time between two items, takes 1.07 times as long so for 128 rows (Zen 4).
"""

from __future__ import annotations

from typing import Any

import torch


def realise_copies() -> None:
    """Have every package of this process compiled so."""
    from torch._inductor.lowering import lowerings

    copy, pick = torch.ops.aten.clone.default, torch.ops.aten.index.Tensor
    copied, picked = lowerings[copy], lowerings[pick]

    def write(value: Any, *, memory_format: torch.memory_format | None = None) -> Any:
        made = copied(value, memory_format=memory_format)
        if memory_format is torch.contiguous_format:
            made.realize()
        return made

    def look_up(table: Any, ids: Any) -> Any:
        made = picked(table, ids)
        if len(table.get_size()) == 1 and table.get_device().type == "cpu":
            made.realize()
        return made

    lowerings[copy], lowerings[pick] = write, look_up
