"""Empty the caches between calls, as the other work of a busy server would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN = 64 << 20  # bytes to assume where the system does not say


def evictor(device: str) -> tuple[Callable[[], None], int]:
    """A call that writes over twice the largest cache of the device, and how many bytes it
    writes. On CUDA the host's caches stay warm: requests arrive through them."""
    target = torch.device(device)
    if target.type == "cuda":
        nbytes = 2 * torch.cuda.get_device_properties(target).L2_cache_size
    else:
        nbytes = 2 * largest_cache()
    buffer = torch.zeros(nbytes, dtype=torch.uint8, device=target)

    def evict() -> None:
        buffer.add_(1)
        if target.type == "cuda":
            torch.cuda.synchronize(target)

    return evict, nbytes


def largest_cache() -> int:
    """Bytes of the last cache before memory, as Linux tells them."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found = []
    for file in _CACHES.glob("index*/size"):
        text = file.read_text().strip()
        if text[-1:] in units and text[:-1].isdecimal():
            found.append(int(text[:-1]) * units[text[-1]])
    return max(found, default=_UNKNOWN)
