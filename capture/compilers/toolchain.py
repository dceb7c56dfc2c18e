"""What AOTInductor needs on this machine, and whether it is there."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_HEADERS = ("cuda.h", "cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h", "cuda_fp8.h")  # of packages
_USUAL = Path("/usr/local/cuda")
_APART = "cccl"  # where CUDA 13 has headers of CCCL, which nvcc looks through by itself


def cxx_compiler() -> str | None:
    """Path of the C++ compiler that AOTInductor would use."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compile_jobs() -> int:
    """Processes that may compile side by side: one for each core, or fewer where `MAX_JOBS` says
    so, as builds of torch's extensions read it."""
    most = os.environ.get("MAX_JOBS", "")
    return min(usable_cores(), max(1, int(most))) if most.isdecimal() else usable_cores()


def inductor_problem(device: str) -> str | None:
    """Why segments cannot be compiled here, or None. `device` is `cpu` or `cuda`."""
    if cxx_compiler() is None:
        return "no C++ compiler was found (g++ on the PATH, or CXX)"
    if device.startswith("cuda"):
        return _cuda_problem()
    return None


def triton_problem() -> str | None:
    """Why our own CUDA kernels cannot be compiled here, or None."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton; it comes with torch's CUDA wheels)"
    if not any(shutil.which(c) for c in (os.environ.get("CC", "gcc"), "clang")):
        return "Triton needs a C compiler to launch kernels, and none was found (gcc, or CC)"
    return None


def cuda_root() -> Path | None:
    """Where CUDA's headers are: torch's wheels carry its libraries but not all headers that
    generated code includes. The first place that has all, or else the first that has any."""
    found = [root for root in _places() if (root / "include" / "cuda.h").is_file()]
    compiler = cxx_compiler()
    for root in found:
        if compiler is not None and _headers_problem(compiler, root / "include") is None:
            return root
    return found[0] if found else None


def _places() -> list[Path]:
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    beside = [Path(nvcc), Path(nvcc).resolve()] if nvcc else []  # it may be a link to a toolkit's
    wheels = find_spec("nvidia")
    parts = wheels.submodule_search_locations if wheels is not None else None
    return [
        *(Path(place) for place in named if place),
        *(file.parent.parent for file in beside),
        _USUAL,
        *(folder for part in parts or () for folder in sorted(Path(part).glob("cu*"))),
    ]


def _cuda_problem() -> str | None:
    root, compiler = cuda_root(), cxx_compiler()
    if root is None:
        return "no CUDA headers were found (cuda.h below CUDA_HOME/include)"
    assert compiler is not None  # which is asked for first
    return _headers_problem(compiler, root / "include")


@cache
def _headers_problem(compiler: str, folder: Path) -> str | None:
    """Why the headers that packages include cannot be, or None. Toolkits come in parts, and the
    headers of one part include those of others."""
    source = "".join(f"#include <{name}>\n" for name in _HEADERS)
    command = [compiler, "-fsyntax-only", "-x", "c++", "-I", str(folder), "-"]
    command[-1:-1] = ["-idirafter", str(folder / _APART)]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    said = [line for line in done.stderr.splitlines() if "error:" in line]
    return (
        f"CUDA's headers in {folder} are not complete ({(said or [done.stderr])[0].strip()}); "
        "install those of the runtime, the compiler and CCCL (from PyPI: nvidia-cuda-runtime, "
        "nvidia-cuda-crt, nvidia-cuda-cccl), or set CUDA_HOME to a toolkit that has them"
    )


def cuda_link_environment(folder: Path) -> dict[str, str]:
    """The environment for compiling for CUDA, in which headers and `-lcuda` are found.

    torch looks for headers in one place alone, which is beside `nvcc` if there is one and may be
    that of a script which calls it; they are where `CUDA_HOME` says. A driver brings
    `libcuda.so.1`, which this process has loaded. Toolkits bring `libcuda.so` to link against, but
    not all of them do: `folder` is given a link of that name.
    """
    found = dict(os.environ)
    root = cuda_root()
    if root is not None:
        found["CUDA_HOME"] = str(root)
        _append(found, "CPATH", root / "include" / _APART)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/libcuda.so." in line:
            folder.mkdir(exist_ok=True)
            link = folder / "libcuda.so"
            if not link.exists():
                link.symlink_to(line.split(maxsplit=5)[5])
            # Looked through after the folders of the command line.
            _append(found, "LIBRARY_PATH", folder)
            break
    return found


def _append(environment: dict[str, str], name: str, folder: Path) -> None:
    before = environment.get(name)
    environment[name] = f"{before}{os.pathsep}{folder}" if before else str(folder)
