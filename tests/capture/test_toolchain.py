"""What compiling for CUDA finds on a machine with a driver and no library to link against."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from recreplay.capture.compilers import toolchain
from recreplay.capture.compilers.toolchain import (
    cuda_link_environment,
    cuda_root,
    inductor_problem,
)

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


@pytest.mark.parametrize("home", [None, "elsewhere"])
def test_headers_are_looked_for_where_they_are(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nvcc` may be a script that calls the one of a toolkit, and torch looks beside it alone."""
    monkeypatch.setattr(toolchain, "_USUAL", tmp_path / "none")
    script, header = tmp_path / "bin" / "nvcc", tmp_path / "toolkit" / "include" / "cuda.h"
    for file in (script, header):
        file.parent.mkdir(parents=True)
        file.touch(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "toolkit"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / home))
    assert cuda_link_environment(tmp_path / "driver")["CUDA_HOME"] == str(tmp_path / "toolkit")


def test_without_a_driver_or_headers_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recreplay.capture.compilers.toolchain.cuda_root", lambda: None)
    assert cuda_link_environment(tmp_path / "driver") == dict(os.environ)
    assert not (tmp_path / "driver").exists()


def toolkit(root: Path) -> Path:
    """A folder with what packages include, and one header that includes another part's."""
    include = root / "include"
    for name in ("cuda.h", "cuda_runtime.h", "cuda_bf16.h", "cuda_fp8.h", "nv/target"):
        (include / name).parent.mkdir(parents=True, exist_ok=True)
        (include / name).touch()
    (include / "cuda_fp16.h").write_text("#include <nv/target>\n")
    return root


@needs_compiler
@pytest.mark.parametrize("whole", ["home", "linked", "usual", "wheels"])
def test_headers_are_taken_from_the_first_place_that_has_all(
    whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of torch's wheels lack parts, and `nvcc` may be a link to a toolkit's."""
    places = {
        "home": tmp_path / "home",
        "linked": tmp_path / "linked",
        "usual": tmp_path / "usual",
        "wheels": tmp_path / "site" / "nvidia" / "cu13",
    }
    for name, place in places.items():
        toolkit(place)
        if name != whole:
            (place / "include" / "nv" / "target").unlink()
    (places["linked"] / "bin").mkdir()
    (places["linked"] / "bin" / "nvcc").touch(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(places["linked"] / "bin" / "nvcc")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_HOME", str(places["home"]))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(toolchain, "_USUAL", places["usual"])
    wheels = SimpleNamespace(submodule_search_locations=[str(places["wheels"].parent)])
    monkeypatch.setattr(toolchain, "find_spec", {"nvidia": wheels}.get)
    assert cuda_root() == places[whole]
    assert inductor_problem("cuda") is None


@needs_compiler
def test_headers_of_cccl_may_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA 13 has them, where a C++ compiler does not look by itself."""
    include = toolkit(tmp_path) / "include"
    (include / "cccl").mkdir()
    (include / "nv").rename(include / "cccl" / "nv")
    monkeypatch.setattr(toolchain, "_places", lambda: [tmp_path])
    monkeypatch.delenv("CPATH", raising=False)
    assert inductor_problem("cuda") is None
    command = ["g++", "-fsyntax-only", "-I", str(include), "-x", "c++", "-"]
    told = cuda_link_environment(tmp_path / "driver")
    source = "#include <cuda_fp16.h>\n"
    subprocess.run(command, env=told, input=source, text=True, check=True)


@needs_compiler
@pytest.mark.parametrize("part", [None, "cuda_runtime.h", "nv/target"])
def test_headers_that_lack_a_part_are_a_problem_before_anything_is_compiled(
    part: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `pip install nvidia-cuda-runtime` alone: its `cuda_fp16.h` wants CCCL's."""
    include = toolkit(tmp_path) / "include"
    if part is not None:
        (include / part).unlink()
    monkeypatch.setattr(toolchain, "_places", lambda: [tmp_path])
    problem = inductor_problem("cuda")
    if part is None:
        assert problem is None
    else:
        assert problem is not None
        assert str(include) in problem
        assert part in problem
        assert "CUDA_HOME" in problem
