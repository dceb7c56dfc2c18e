"""Loops that reduce looked-up rows, by vectors of a row's columns.

Inductor makes vectors along the last loop that any tensor of integers or floats is contiguous in.
Where rows that a request asks for are pooled, that is the loop over the ids: each value of such a
vector is read from a row of its own, one by one. The maximum of 50 rows of 32 floats takes 236 us
so for 128 items, and 71 us by columns; with attention over them 221 and 71 (one Zen 5 core).
"""

from __future__ import annotations

import re
from functools import wraps
from typing import Any

_LOOP = re.compile(r"d(\d+)")  # what inductor calls a loop


def vectorise_columns() -> None:
    """Have every package of this process compiled so."""
    from torch._inductor.codegen.cpp import TilingSelect

    usual: Any = TilingSelect._select_tiling_indices  # untyped

    @wraps(usual)
    def select(self: Any, functions: Any, ranges: Any, factor: int) -> list[int]:
        chosen: list[int] = usual(self, functions, ranges, factor)
        kept, reduced = max(ranges, key=lambda sizes: len(sizes[1]))
        loops = len(kept) + len(reduced)
        if len(chosen) != 1 or chosen[0] % loops < len(kept):
            return chosen
        columns = _columns_of_rows(functions, ranges, factor, chosen[0] % loops)
        return [max(columns)] if columns and max(columns) < len(kept) else chosen

    TilingSelect._select_tiling_indices = select  # type: ignore[method-assign]


def _columns_of_rows(functions: Any, ranges: Any, factor: int, ids: int) -> set[int]:
    """The loops along which looked-up rows are contiguous, if integers are read along loop
    `ids`."""
    # Where it is defined differs between versions.
    from torch._inductor.codegen.cpp import stride_at_vec_range  # type: ignore[attr-defined]
    from torch._inductor.dependencies import extract_read_writes
    from torch._inductor.virtualized import V
    from torch.utils._sympy.symbol import SymT, symbol_is_type

    columns, by_ids = set(), False
    for function, sizes in zip(functions, ranges, strict=True):
        for read in extract_read_writes(function, *sizes).reads:
            found = {s: _LOOP.fullmatch(s.name) for s in read.index.free_symbols}
            loops = {int(named[1]): symbol for symbol, named in found.items() if named}
            if any(symbol_is_type(s, (SymT.INDIRECT, SymT.TMP)) for s in found):
                strides = {i: stride_at_vec_range(read.index, s, factor) for i, s in loops.items()}
                columns |= {i for i, stride in strides.items() if stride == 1}
            elif ids in loops and not V.graph.get_dtype(read.name).is_floating_point:
                by_ids = True
    return columns if by_ids else set()
