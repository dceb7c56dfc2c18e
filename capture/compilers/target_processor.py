"""Which instructions inductor may use: those of the processor that a job names.

`-march` alone does not say it, since inductor writes its loops for the widest vectors that this
machine has, and names the instructions that come with them on the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._inductor import cpu_vec_isa

from recreplay.runtime.processor import NATIVE


class _Avx512(cpu_vec_isa.VecAVX512):
    """Without AVX512-BF16, VNNI and AMX, which it would be given where they are."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return True


_VECTORS = {"x86-64-v3": cpu_vec_isa.VecAVX2, "x86-64-v4": _Avx512}


@contextmanager
def compiling_for(processor: str) -> Iterator[dict[str, Any]]:
    """Gives the settings of inductor that go with it."""
    if processor == NATIVE:
        yield {}
        return
    found = cpu_vec_isa.valid_vec_isa_list
    only = [_VECTORS[processor]()]
    cpu_vec_isa.valid_vec_isa_list = lambda: only  # type: ignore[assignment]
    try:
        yield {"cpp.march": processor}
    finally:
        cpu_vec_isa.valid_vec_isa_list = found
