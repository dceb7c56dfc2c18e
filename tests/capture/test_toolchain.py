"""What compiling for CUDA finds on a machine with a driver and no library to link against."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recreplay.capture.compilers.toolchain import cuda_link_environment

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
LINKING = """
import ctypes, subprocess, sys
from pathlib import Path
from recreplay.capture.compilers.toolchain import cuda_link_environment
folder = Path(sys.argv[1])
if sys.argv[2] == "loaded":
    ctypes.CDLL(str(folder / "libcuda.so.1"))
found = cuda_link_environment(folder / "driver")
command = ["g++", "-shared", "-o", str(folder / "out.so"), str(folder / "none.cpp"), "-lcuda"]
sys.exit(subprocess.run(command, env=found, stderr=subprocess.DEVNULL).returncode)
"""


@needs_compiler
@pytest.mark.parametrize("loaded", ["loaded", "absent"])
def test_what_is_loaded_is_what_is_linked_against(loaded: str, tmp_path: Path) -> None:
    source = tmp_path / "none.cpp"
    source.write_text("int nothing;\n")
    driver = str(tmp_path / "libcuda.so.1")
    subprocess.run(["g++", "-shared", "-fPIC", "-o", driver, str(source)], check=True)
    command = [sys.executable, "-c", LINKING, str(tmp_path), loaded]
    # A toolkit of this machine is not to help.
    kept = {k: v for k, v in os.environ.items() if k != "LIBRARY_PATH"}
    done = subprocess.run(command, env=kept)
    assert (done.returncode == 0) == (loaded == "loaded")
    assert (tmp_path / "driver" / "libcuda.so").exists() == (loaded == "loaded")


def test_without_a_driver_nothing_changes(tmp_path: Path) -> None:
    assert cuda_link_environment(tmp_path / "driver") == dict(os.environ)
    assert not (tmp_path / "driver").exists()
