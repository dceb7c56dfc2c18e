"""Run Python with torch's CUDA build on an emulated device: `run.py -m pytest tests/gpu`.

Wants torch with CUDA (its wheel alone, none of NVIDIA's libraries), cuda-bindings, g++ and CUDA's
headers (`CUDA_HOME`). What is emulated, and what that shows and does not, stands in `README.md`
beside this file.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from build import HERE, build


def cuda_include() -> Path:
    """The folder of `cuda_runtime_api.h`: of a toolkit, or of headers from PyPI."""
    root = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    if not (root / "include" / "cuda_runtime_api.h").is_file():
        raise SystemExit(f"error: no include/cuda_runtime_api.h in {root}; set CUDA_HOME")
    return root / "include"


def main() -> None:
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        raise SystemExit("error: torch is not installed here; the emulator wants its CUDA build")
    libraries = Path(torch.origin).parent / "lib"
    if not (libraries / "libtorch_cuda.so").is_file():
        raise SystemExit("error: this torch was built without CUDA, of which the emulator is made")
    # torch's libraries look for NVIDIA's beside themselves first, before LD_LIBRARY_PATH.
    for theirs in libraries.parent.parent.glob("nvidia/*/lib/libcudart.so.*"):
        raise SystemExit(f"error: torch would load {theirs}; uninstall NVIDIA's wheels from here")
    text = "".join(f.read_text() for f in [*sorted(HERE.glob("lib*/*")), HERE / "build.py"])
    key = hashlib.sha256(f"{libraries}{text}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"recreplay-emulated-{key}"
    if not (folder / "built").exists():
        build(folder, libraries, cuda_include())
    for name, value in (("LD_LIBRARY_PATH", folder), ("PYTHONPATH", HERE.parent)):
        before = os.environ.get(name)
        os.environ[name] = f"{value}:{before}" if before else str(value)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
