"""Run `tests/gpu`: each file in a process of its own, side by side, again where a context broke.

A kernel that fails takes the CUDA context of its process along, and every test after it. Such a
process ends (`tests/gpu/conftest.py`), and another one goes on behind the test that did it. Files
that compile much are shared by several processes, and those that time anything run when the others
have ended.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recreplay.tools import gpu_report
from recreplay.tools.limited_run import Silence, run_limited

SHARES = {"test_cuda_grouped.py": 8, "test_cuda_parity.py": 6}  # processes for one file
SHARE = "RECREPLAY_GPU_SHARE"  # "I/N": of a file's tests, those of share I (tests/gpu/conftest.py)
ALONE = "_alone.py"  # how files end that time something
BROKEN = 7  # what pytest exits with where a context is broken; 0 to 5 are its own
PATIENCE = 60.0  # seconds without a test that begins or ends: of one whose kernel never does
_NOTHING_LEFT = 5  # what it exits with where every test is left out
_TRIES = 5  # processes for one file


@dataclass(frozen=True)
class FileRun:
    """One file: its cases so far, and how its last process ended."""

    file: str
    cases: tuple[dict[str, str], ...]
    exit_code: int
    processes: int
    seconds: float
    tail: str


def run_tests(
    root: Path,
    work: Path,
    seconds: float,
    keep: Callable[[dict[str, Any]], None] = lambda verdict: None,
) -> dict[str, Any]:
    """The verdict of `tests/gpu` below `root`: counts, and the failures in their own words. What it
    is so far is kept whenever a file is done."""
    files = sorted((root / "tests" / "gpu").glob("test_*.py"))
    end = time.monotonic() + seconds
    runs: list[FileRun] = []
    keeping = threading.Lock()

    def run(job: tuple[Path, str]) -> None:
        done = run_file(root, *job, work, end)
        with keeping:
            runs.append(done)
            keep(_verdicts(runs))

    beside = [(f, s) for f in files if not f.name.endswith(ALONE) for s in _shares(f)]
    # The longest first.
    beside.sort(key=lambda job: job[0].name not in SHARES)
    with ThreadPoolExecutor(os.cpu_count()) as side_by_side:
        list(side_by_side.map(run, beside))
    for file in files:
        if file.name.endswith(ALONE):
            run((file, "0/1"))
    return _verdicts(runs)


def _verdicts(runs: Sequence[FileRun]) -> dict[str, Any]:
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


def _shares(file: Path) -> list[str]:
    count = SHARES.get(file.name, 1)
    return [f"{at}/{count}" for at in range(count)]


def run_file(root: Path, file: Path, share: str, work: Path, end: float) -> FileRun:
    """A share of one file until all of its tests have run, `_TRIES` processes have ended before, or
    time is up. What ran until then is kept."""
    begun = time.monotonic()
    path = file.relative_to(root)
    name = file.name if share == "0/1" else f"{file.name} {share}"
    report = work / f"{name.replace('/', '-')}.jsonl"
    told = {gpu_report.FILE: str(report), SHARE: share, "OMP_NUM_THREADS": "2"}
    told["MAX_JOBS"] = "2"  # of each of as many that run at once as there are cores
    told["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # of whatever else is installed there
    cases: dict[str, dict[str, str]] = {}
    code: int | None = BROKEN
    tail, tried = "", 0
    while tried < _TRIES and _goes_on(code):
        if time.monotonic() > end:
            code = None
            break
        tried += 1
        command = [sys.executable, "-m", "pytest", "-q", "-p", gpu_report.__name__, str(path)]
        command += [f"--deselect={case}" for case in cases]
        left = end - time.monotonic()
        code, tail = run_limited(
            command, left, root, {**os.environ, **told}, Silence(report, PATIENCE)
        )
        known, cases = len(cases), gpu_report.read_report(report)
        if len(cases) == known:
            break  # it ends before any test begins, or all have run
    if code is None:
        for case in cases.values():  # no fault of the test that was ended with it
            if case["message"] == gpu_report.ENDED:
                case |= {"outcome": "unfinished", "message": "no time"}
    ran = tuple(cases.values())
    tail = f"no time; {tail[-3000:]}" if code is None else tail[-3000:]
    return FileRun(name, ran, _verdict(code, ran), tried, time.monotonic() - begun, tail)


def _verdict(code: int | None, cases: Sequence[dict[str, str]]) -> int:
    """0 where all tests of a file have run and none failed; `code` is of its last process."""
    if code == _NOTHING_LEFT and cases:
        code = 0
    if code is None or _goes_on(code):
        return 1
    return code or int(any(case["outcome"] == "failed" for case in cases))


def _goes_on(code: int | None) -> bool:
    """Whether another process runs what is left: this one was ended by a test."""
    return code is not None and (code == BROKEN or code < 0)
