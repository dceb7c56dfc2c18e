"""Packages that leave the process when they are closed.

The loader keeps a library that has defined a thing which is unique in the process, as GCC marks
what templates and inline functions hold, and one that a thread has to call when it ends, to destroy
what it holds. A service that exchanges versions would keep the libraries of all of them, and their
bytes on disk.
"""

from __future__ import annotations

import re
from functools import wraps

_HELD = re.compile(r"^static thread_local std::string (\w+);$", re.MULTILINE)


def without_destructors(source: str) -> str:
    """`source` with strings of threads that nobody destroys: 32 bytes a thread and package."""
    return _HELD.sub(r"static thread_local std::string& \1 = *new std::string;", source)


def leave_out_marks() -> None:
    """Have every package of this process compiled without the mark. Only GCC knows it."""
    from torch._inductor import cpp_builder

    usual = cpp_builder._get_os_related_cpp_cflags

    @wraps(usual)
    def with_flag(cpp_compiler: str) -> list[str]:
        gcc = cpp_builder._is_gcc(cpp_compiler)
        return [*usual(cpp_compiler), *(["fno-gnu-unique"] if gcc else [])]

    cpp_builder._get_os_related_cpp_cflags = with_flag
