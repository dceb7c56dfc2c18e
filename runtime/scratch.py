"""Temporary folders that are ours: named after their process, and swept when that process is
gone."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

_PREFIX = "recreplay-"
_ALSO = "also.txt"  # in a scratch folder: one more folder that goes when it goes


def make_scratch() -> Path:
    """A new folder; folders that killed processes left behind are removed first."""
    for stale in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        if _is_mine(stale) and not is_alive(stale.name.removeprefix(_PREFIX).partition("-")[0]):
            drop_scratch(stale)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))


def drop_scratch(folder: Path) -> None:
    also = folder / _ALSO
    if also.is_file():
        other = Path(tempfile.gettempdir()) / also.read_text()
        if _is_mine(other):
            shutil.rmtree(other, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def adopt(folder: Path, other: Path) -> None:
    """Have `other`, a temporary folder that a library made, go together with our `folder`."""
    (folder / _ALSO).write_text(other.name)


def _is_mine(folder: Path) -> bool:
    """Whether this user made it, right inside the temporary folder: others can write there too."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    inside = folder.parent == Path(tempfile.gettempdir()) and folder.name not in ("", ".", "..")
    return inside and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def is_alive(pid: str) -> bool:
    """Whether a process of this number runs; what is no number counts as running."""
    if not pid.isdecimal():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
