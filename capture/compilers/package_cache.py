"""Packages that were compiled before, so that a model with new weights needs no compiling.

A package holds no weights. It depends on the code of its segment alone, and on what compiled it:
that is its name here, and a package whose name is not found is compiled. Each is one zip file below
`$XDG_CACHE_HOME/recreplay/packages` (`~/.cache` by default), which carries checksums of its own. A
file that cannot be read is as good as none. Those used longest ago go when there are too many. What
packages share is kept as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

import recreplay.runtime
from recreplay.capture.cache_folder import cache_folder
from recreplay.capture.compilers.toolchain import cxx_compiler
from recreplay.runtime.processor import processor

MOST_BYTES = 1 << 30  # of all packages together
# Variables that torch, its compilers and ours read begin with these.
_READ = ("TORCH", "ATEN_", "CXX", "CPATH", "CPLUS_", "CUDA_", "TRITON_", "PYTORCH_")


class PackageCache:
    def __init__(self, environment: Mapping[str, str], settings: Mapping[str, object]) -> None:
        """`environment`: the device that packages are for; `settings`: what they are compiled
        with."""
        self._folder = cache_folder("packages")
        self._told = {
            "environment": dict(environment),
            "settings": dict(settings),
            "torch": [torch.__version__, torch.version.git_version],
            "processor": [processor(), processor("flags")],
            "compiler": _compiler_version(cxx_compiler()),
            "sources": _sources(),
            "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_READ)},
        }

    def take(self, code: object, target: Path) -> bool:
        """Lay the package of this code (JSON) open as the new folder `target`; False if there is
        none."""
        path = self._path(code)
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(target)
            os.utime(path)  # used last now
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
            shutil.rmtree(target, ignore_errors=True)
            return False
        return True

    def keep(self, code: object, source: Path) -> None:
        """Keep the package in the folder `source`. Where the cache cannot be written, the next
        capture compiles again."""
        path = self._path(code)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / path.name
                with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
                    for member in sorted(source.rglob("*")):
                        archive.write(member, member.relative_to(source))
                os.replace(made, path)  # whole, or not at all
            _prune(path.parent)

    def _path(self, code: object) -> Path:
        told = json.dumps({**self._told, "code": code}, sort_keys=True)
        return self._folder / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.zip"


def _prune(folder: Path) -> None:
    """Remove what was used longest ago until `MOST_BYTES` are left. Others may do so meanwhile."""
    found = [(path.stat(), path) for path in folder.glob("*.zip")]
    total = sum(stat.st_size for stat, _ in found)
    for stat, path in sorted(found, key=lambda item: item[0].st_mtime):
        if total <= MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size


@cache
def _compiler_version(compiler: str | None) -> str:
    if compiler is None:
        return ""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    return f"{compiler} {done.stdout}"


@cache
def _sources() -> str:
    """A hash of the code of ours that makes packages, and of what it says of operators."""
    digest = hashlib.sha256()
    for package in (Path(__file__).parent, Path(recreplay.runtime.__file__).parent):
        for path in sorted(package.rglob("*")):
            if path.suffix in (".py", ".h", ".c", ".cpp"):
                digest.update(path.read_bytes())
    return digest.hexdigest()
