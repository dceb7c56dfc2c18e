"""Small libraries of C that artifacts carry: what has to be done in one call from Python."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from recreplay.capture.compilers.toolchain import cxx_compiler, inductor_problem
from recreplay.runtime.errors import CompilerError


def build_c_library(source: str, target: Path) -> None:
    """Compile `source`, a file of this folder. Raises CompilerError."""
    compiler = cxx_compiler()
    if compiler is None:
        raise CompilerError(f"cannot build {target.name}: {inductor_problem('cpu')}")
    target.write_bytes(_compiled(compiler, Path(__file__).with_name(source)))


@cache
def _compiled(compiler: str, source: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / source.with_suffix(".so").name
        options = ["-O3", "-shared", "-fPIC", "-pthread"]
        command = [compiler, "-x", "c", *options, str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise CompilerError(f"{compiler} failed on {source.name}:\n{done.stderr.strip()}")
        return library.read_bytes()
