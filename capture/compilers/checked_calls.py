"""Inductor's C++ in which no call's error is lost.

What inductor leaves to torch is called by C functions that return whether they failed. Of those of
`scatter` the answer is not looked at: an id that torch refuses would leave the result as it was
before, and the replay would go on with that.
"""

from __future__ import annotations

import re

_UNCHECKED = re.compile(r"^(\s*)(aoti_torch_\w*scatter\w*_out\(.*\));$", re.MULTILINE)


def with_checked_calls(source: str) -> str:
    """`source` in which a scatter that fails is an error of the package."""
    return _UNCHECKED.sub(r"\1AOTI_TORCH_ERROR_CODE_CHECK(\2);", source)
