"""Where and when a measurement was made: a number without that cannot be compared with another."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def stamp(threads: int) -> dict[str, Any]:
    """Commit, date, versions, processor, load and command line of this run."""
    import numpy
    import torch

    from recreplay.capture.compilers.toolchain import usable_cores
    from recreplay.tools.machine import cpu_model

    return {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        # Above the number of cores, others compete for them: medians rise, and tails more so.
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "command": shlex.join(["recreplay", *sys.argv[1:]]),
    }


def heading(kind: str, runs: int) -> dict[str, Any]:
    """How the report of a measurement on one thread and random requests begins."""
    from recreplay.tools.bench.requests import COUNT

    return {"kind": kind, "stamp": stamp(threads=1), "runs": runs, "requests": COUNT}


def _commit() -> str | None:
    """Commit of the checkout that this code runs from, `+changes` if files differ; else None."""
    for place in (Path(__file__).resolve().parent, Path.cwd()):
        root = _git(place, "rev-parse", "--show-toplevel")
        project = Path(root or place) / "pyproject.toml"
        # Any repository may surround an installed package; only our own says what code this is.
        if root is None or not project.is_file() or 'name = "recreplay"' not in project.read_text():
            continue
        commit = _git(place, "rev-parse", "HEAD")
        if commit is not None:
            return f"{commit}+changes" if _git(place, "status", "--porcelain") else commit
    return None


def _git(place: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(place), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
