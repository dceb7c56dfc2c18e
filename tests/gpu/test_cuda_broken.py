"""A broken context: told, survived where something else can answer, and no end of the process."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recreplay.tools.gpu_tests import BROKEN

FILE = Path(__file__).with_name("broken_context.py")
CASES = re.findall(r"^def (test_\w+)", FILE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("case", CASES)
def test_in_a_process_of_its_own(case: str) -> None:
    """Each case of each test; the context that it leaves behind ends the session."""
    asked = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    if torch.cuda.get_device_name().startswith("Emulated"):
        asked += ["-p", "emulated.plugin"]
    listed = subprocess.run(
        [*asked, "--collect-only", f"{FILE}::{case}"], capture_output=True, text=True, timeout=300
    )
    names = [line.rpartition("::")[2] for line in listed.stdout.splitlines() if "::" in line]
    assert names
    for name in names:
        done = subprocess.run(
            [*asked, f"{FILE}::{name}"], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == BROKEN, f"{name}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        assert "1 passed" in done.stdout, done.stdout[-3000:]
