"""Run `tests/gpu`: each file in a process of its own, side by side, again where a context broke.

A kernel that fails takes the CUDA context of its process along, and every test after it. Such a
process ends (`tests/gpu/conftest.py`), and another one goes on behind the test that did it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

BROKEN = 7  # what pytest exits with where a context is broken; 0 to 5 are its own
_TRIES = 5  # processes for one file
_WORDS = 2000  # characters that are kept of a failure


@dataclass(frozen=True)
class FileRun:
    """One file: its cases so far, and how its last process ended."""

    file: str
    cases: tuple[dict[str, str], ...]
    exit_code: int
    processes: int
    seconds: float
    tail: str


def run_tests(root: Path, work: Path, seconds: float) -> dict[str, Any]:
    """The verdict of `tests/gpu` below `root`: counts, and the failures in their own words."""
    files = sorted((root / "tests" / "gpu").glob("test_*.py"))
    most = max(1, min(len(files), (os.cpu_count() or 2) // 2))
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(most) as side_by_side:
        runs = list(side_by_side.map(lambda file: run_file(root, file, work, end), files))
    cases = [case for run in runs for case in run.cases]
    count = {kind: sum(c["outcome"] == kind for c in cases) for kind in ("passed", "skipped")}
    return {
        **count,
        "exit_code": next((run.exit_code for run in runs if run.exit_code), 0),
        "not_passed": [c for c in cases if c["outcome"] != "passed"],
        "files": {
            run.file: {
                "cases": len(run.cases),
                "exit_code": run.exit_code,
                "processes": run.processes,
                "seconds": round(run.seconds, 1),
                "tail": "" if run.exit_code == 0 else run.tail,
            }
            for run in runs
        },
    }


def run_file(root: Path, file: Path, work: Path, end: float) -> FileRun:
    """One file until all of its tests have run, `_TRIES` contexts are broken, or time is up."""
    begun = time.monotonic()
    cases: list[dict[str, str]] = []
    code, tail, tried = BROKEN, "", 0
    while code == BROKEN and tried < _TRIES:
        tried += 1
        report = work / f"{file.stem}-{tried}.xml"
        command = [sys.executable, "-m", "pytest", str(file.relative_to(root)), "-q"]
        command += [f"--junitxml={report}", *(f"--deselect={case['id']}" for case in cases)]
        try:
            done = subprocess.run(
                command, cwd=root, capture_output=True, text=True, timeout=end - time.monotonic()
            )
        except (subprocess.TimeoutExpired, ValueError):  # a time that is past already
            return FileRun(file.name, tuple(cases), 1, tried, time.monotonic() - begun, "no time")
        code, tail = done.returncode, (done.stdout + done.stderr)[-3000:]
        if report.exists():
            cases += read_cases(report, file.relative_to(root))
        elif code == BROKEN or code < 0:
            break  # died before it could say what it ran
    failed = code if code not in (0, BROKEN) else int(any(_bad(c) for c in cases))
    return FileRun(file.name, tuple(cases), failed, tried, time.monotonic() - begun, tail)


def _bad(case: dict[str, str]) -> bool:
    return case["outcome"] in ("failure", "error")


def read_cases(report: Path, file: Path) -> list[dict[str, str]]:
    """What a JUnit report says of each test, by pytest's own name for it."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        told = next((c for c in case if c.tag in ("failure", "error", "skipped")), None)
        found.append(
            {
                "id": f"{file}::{case.get('name')}",
                "outcome": "passed" if told is None else told.tag,
                "message": "" if told is None else str(told.get("message"))[:_WORDS],
            }
        )
    return found
