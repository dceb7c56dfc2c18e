"""Jobs on a GPU: several at a time, in processes that are started anew where a job ends one.

A kernel that fails takes the CUDA context of its process along, one that never ends takes the time,
and the system may kill whoever takes too much memory. Each costs the job that did it: what others
found was told when they found it, and another process goes on behind.

Jobs get ready side by side, which is compiling mostly, and measure alone: see `Turns`.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recreplay.tools.limited_run import end_with_parent

Row = dict[str, Any]  # what JSON holds
Say = Callable[[Row], None]
LAST = "last"  # of a job: true where it leaves a process that nothing else should be measured in
_GLANCE = 0.5  # seconds between looks at what processes said
_LAST_WORDS = 1500  # characters of a process that ended
_LATE = "no time"
# What a process tells, line by line.
_BEGUN, _ROW, _ENDED, _WAITS, _GOES_ON = "begun", "row", "ended", "waits", "goes on"


@dataclass(frozen=True)
class Turns:
    """A file that processes lock: many that get ready, or one that measures."""

    path: Path
    tell: Callable[[str], None]  # that it waits, and that it goes on

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Beside others that get ready, while nobody measures."""
        with self._held(fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._held(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _held(self, kind: int) -> Iterator[None]:
        with self.path.open("a") as file:
            self.tell(_WAITS)
            fcntl.flock(file, kind)
            self.tell(_GOES_ON)
            yield


def run_jobs(
    module: str, jobs: Sequence[Row], work: Path, end: float, patience: float, lanes: int, note: Say
) -> None:
    """Do `jobs` by `python -m module`, whose main is `do_jobs`, in `lanes` processes at a time,
    until `end` by `time.monotonic`.

    `note` is given each row as it is told, from one thread at a time or another. A job that took
    its process along, or said nothing for `patience` seconds, is a row with an `error`; one that
    was not begun, or not finished in time, has `skipped`. `work` is an empty folder.
    """
    share = str(max(1, len(os.sched_getaffinity(0)) // lanes))  # of the cores
    told = {**os.environ, "OMP_NUM_THREADS": share, "MAX_JOBS": share}

    def lane(number: int) -> None:
        left = list(enumerate(jobs))[number::lanes]
        tried = 0
        while left and time.monotonic() < end:
            tried += 1
            folder = work / f"lane{number}-{tried}"
            folder.mkdir(parents=True)
            left = _one_process(module, left, folder, end, patience, told, note)
        for _, job in left:
            note({**job, "skipped": _LATE})

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(lane, range(lanes)))


def _one_process(
    module: str,
    jobs: list[tuple[int, Row]],
    folder: Path,
    end: float,
    patience: float,
    environment: dict[str, str],
    note: Say,
) -> list[tuple[int, Row]]:
    """Jobs that are left for another process when this one has ended."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    said, log = folder / "said.jsonl", folder / "log"
    said.touch()
    begun: int | None = None
    ended: set[int] = set()
    with log.open("w") as output, said.open() as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        heard, waits, why, running = time.monotonic(), False, "", True
        try:
            while running and not why:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_GLANCE)
                running = process.poll() is None
                if running and time.monotonic() > end:
                    why = _LATE
                elif running and not waits and time.monotonic() - heard > patience:
                    why = f"nothing was heard of it for {patience:.0f} s"
                if not running or why:
                    _kill(process)
                for kind, value in _whole_lines(lines):
                    heard, waits = time.monotonic(), kind == _WAITS
                    if kind == _ROW:
                        note(value)
                    elif kind == _BEGUN:
                        begun = value
                    elif kind == _ENDED:
                        ended.add(value)
        finally:
            _kill(process)
    why = why or f"its process ended (exit code {process.returncode})"
    failed = {"error": why, "tail": log.read_text(errors="replace")[-_LAST_WORDS:]}
    left = [(number, job) for number, job in jobs if number not in ended and number != begun]
    if begun is None and why != _LATE:  # nor would another process get as far as a job
        for _, job in left:
            note({**job, **failed})
        return []
    if begun is not None and begun not in ended:
        note({**dict(jobs)[begun], **({"skipped": _LATE} if why == _LATE else failed)})
    return left


def _whole_lines(lines: Any) -> Iterator[tuple[str, Any]]:
    """What was written since, up to the last end of a line."""
    while True:
        at = lines.tell()
        line = lines.readline()
        if not line.endswith("\n"):
            lines.seek(at)
            return
        kind, value = json.loads(line)
        yield kind, value


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With all that it started; a process that hangs in the driver may outlive even that."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)


def do_jobs(do: Callable[[Row, Say, Turns], None]) -> None:
    """The main of a module that `run_jobs` runs: `do(job, say, turns)` for one job after the other.

    A job that raises is a row with an `error`. Where it broke the CUDA context the process ends, as
    it does after a job that is marked as its `LAST`.
    """
    folder, parent = Path(sys.argv[1]), os.getppid()
    end_with_parent()
    with (folder / "said.jsonl").open("a", buffering=1) as file:

        def tell(kind: str, value: Any = None) -> None:
            file.write(json.dumps([kind, value]) + "\n")

        turns = Turns(folder.parent / "turns", tell)
        for number, job in json.loads((folder / "jobs.json").read_text()):
            if os.getppid() != parent:  # it was killed before that
                return
            tell(_BEGUN, number)
            failed = False
            try:
                do(job, lambda row: tell(_ROW, row), turns)
            except Exception as error:
                failed = True
                tell(_ROW, {**job, "error": f"{type(error).__name__}: {error}"[:2000]})
            tell(_ENDED, number)
            if job.get(LAST) or (failed and _broken()):
                return


def _broken() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
