"""Where captures keep what later ones need not find out again, and what it depends on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """`$XDG_CACHE_HOME/recreplay/KIND`, below `~/.cache` by default. May not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "recreplay" / kind


def processor(field: str = "model name") -> str:
    """What Linux says of the processor: its `model name`, or its `flags`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
