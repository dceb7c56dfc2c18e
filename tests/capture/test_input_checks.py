"""Inductor's C++ without checks that are never asked for."""

from __future__ import annotations

from pathlib import Path

import torch
import torch._inductor

from recreplay.capture.compilers.input_checks import without_input_checks

CHECK = """static bool _check_aoti_runtime_check_inputs_env() {
    const static char* env_var_value = getenv("AOTI_RUNTIME_CHECK_INPUTS");
    const static bool result = env_var_value != nullptr && env_var_value[0] != '0';
    return result;
}
"""


def test_checks_of_bound_tensors_are_left_out() -> None:
    before, after = "static bool other() {\n}\n", "void run() {\n    if (other()) {}\n}\n"
    assert without_input_checks(before + CHECK + after) == (
        before
        + "static constexpr bool _check_aoti_runtime_check_inputs_env() { return false; }\n"
        + after
    )
    assert without_input_checks(before + after) == before + after


def test_torch_still_writes_the_check_as_we_read_it() -> None:
    written = Path(torch._inductor.__file__).parent / "codegen" / "cpp_wrapper_cpu.py"
    lines = [line.strip() for line in CHECK.splitlines()]
    assert "\n".join(lines) in "\n".join(s.strip() for s in written.read_text().splitlines())
