"""Inductor's C++ of a package, edited before it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def edit_wrappers(*edits: Callable[[str], str]) -> None:
    """Have the source of every package of this process go through `edits`, in this order."""
    from torch._inductor.codecache import AotCodeCompiler

    whole = AotCodeCompiler.compile

    @wraps(whole)
    def compile_edited(graph: Any, wrapper_code: str, *others: Any, **settings: Any) -> Any:
        for edit in edits:
            wrapper_code = edit(wrapper_code)
        return whole(graph, wrapper_code, *others, **settings)

    AotCodeCompiler.compile = compile_edited  # type: ignore[method-assign]
