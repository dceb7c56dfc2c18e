"""Buffers of a package out of memory that the lane keeps, and not of the system's.

Inductor's C++ makes a tensor for what one loop or function gives to the next, and drops it behind
the last that reads it. What that costs where they are large is in `workspace.h`.
"""

from __future__ import annotations

import re
from pathlib import Path

_RUN = "void AOTInductorModel::run_impl("
_MADE = re.compile(r"\baoti_torch_empty_strided\((?=[^;]*\bcached_torch_device_type_cpu\b)")


def with_lent_buffers(source: str) -> str:
    """`source` whose run makes its buffers for the CPU by the function of `lent_buffers.h`."""
    before, run, after = source.partition(_RUN)
    body, end, rest = after.partition("\n}\n")
    lent, made = _MADE.subn("empty_strided(stream, ", body)
    if not made:
        return source
    text = Path(__file__).with_name("lent_buffers.h").read_text()
    return before + text + run + lent + end + rest
