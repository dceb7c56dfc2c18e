"""Inductor's C++ without the checks of the tensors that a package is called with.

They are for debugging, behind a variable of the environment. A lane binds tensors once, by shape
and dtype; the checks of a trunk with 48 arguments take as long to compile as all the rest of it.
"""

from __future__ import annotations

import re

_ASKED = re.compile(
    r"^static bool (_check_aoti_runtime_check_inputs_env)\(\) \{\n.*?^\}$", re.MULTILINE | re.DOTALL
)


def without_input_checks(source: str) -> str:
    """`source` in which the compiler sees that the checks are off."""
    return _ASKED.sub(r"static constexpr bool \1() { return false; }", source)
