"""What Linux says of the processor."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# What compilers use unasked where they may use all that a processor has, and what our functions
# use. Others, such as SSE4a and VP2INTERSECT, come by their intrinsics alone.
_COMPILED = re.compile(
    r"avx(?!512_vp2intersect)|amx|sse4_|fma$|f16c|bmi|abm$|adx$|popcnt|movbe|gfni"  # x86
    r"|asimd|sve|sme|fp$|fphp|i8mm|bf16|atomics|dotprod|crc32"  # ARM
)


def processor(field: str = "model name") -> str:
    """A field of the first core: its `model name`, its `flags` (`Features` on ARM)."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def instruction_sets() -> list[str]:
    """Those that packages which are compiled here may use; none where Linux does not say."""
    if not _CPUINFO.is_file():
        return []
    names = (processor("flags") or processor("Features")).split()
    return sorted(name for name in names if _COMPILED.match(name))
