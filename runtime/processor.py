"""What processors can do: the one that is here, as Linux says, and kinds to compile for."""

from __future__ import annotations

import platform
import re
from collections.abc import Container
from pathlib import Path

NATIVE = "native"  # the processor that is here, and what has all of its instructions
# Levels of x86-64 as its System V ABI defines them, by Linux's names.
_V3 = "abm avx avx2 bmi1 bmi2 f16c fma movbe popcnt sse4_1 sse4_2"
_LEVELS = {
    "x86-64-v3": _V3,  # AVX2
    "x86-64-v4": f"{_V3} avx512bw avx512cd avx512dq avx512f avx512vl",
}
PROCESSORS = (NATIVE, *_LEVELS)
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


def instruction_sets(target: str = NATIVE) -> list[str]:
    """Those that packages which are compiled for `target`, one of `PROCESSORS`, may use; for this
    processor none where Linux does not say."""
    if target != NATIVE:
        return sorted(_LEVELS[target].split())
    if not _CPUINFO.is_file():
        return []
    names = (processor("flags") or processor("Features")).split()
    return sorted(name for name in names if _COMPILED.match(name))


def block_columns(instructions: Container[str]) -> int:
    """How many rows of a packed weight are the columns of a block (`packed_linear`), for packages
    that may use these instructions."""
    return 64 if "avx512f" in instructions else 16
