"""Processes that compile segments, kept a while for the next capture.

A process imports torch and inductor, and inductor builds its tables of patterns, before anything is
compiled: eight seconds, as long as two segments take. Those for a GPU are not kept, since they hold
memory of it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from recreplay.capture.compilers.toolchain import usable_cores
from recreplay.runtime.errors import CompilerError
from recreplay.runtime.scratch import drop_scratch, make_scratch

# What a process says of a job, line by line: that a segment is compiled, or that it cannot be for
# several buckets at once.
COMPILED, APART, DONE = "compiled", "apart", "done"
PATIENCE = 60.0  # seconds without a job, after which a process ends by itself
_MODULE = "recreplay.capture.compilers.inductor_worker"
_SIGN_OF_LIFE = 5.0  # seconds
_LAST_WORDS = 12  # lines
_SURE = 0.8  # of that, after which one still waits for a job

_kept: list[Worker] = []  # the latest last
_keeping = threading.Lock()


class Worker:
    """A process that does one job after the other."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._scratch = make_scratch()
        self._started = (os.getpid(), dict(environment))
        self._log = self._scratch / "log"
        self._jobs = 0
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(PATIENCE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self.stdout = self._process.stdin, self._process.stdout
        self._unfinished = b""  # line of what it says
        self._spoke = time.monotonic()

    def begin(self, job: Mapping[str, object]) -> None:
        self._jobs += 1
        path = self._scratch / f"job{self._jobs}.json"
        path.write_text(json.dumps({**job, "scratch": str(self._scratch)}))
        with contextlib.suppress(OSError):  # it died, which `lines` tells
            self._stdin.write(f"{path}\n".encode())
            self._stdin.flush()

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether it waits for a job of this process, and in the same environment: the last thing
        that it said is that it was done."""
        alive = self._process.poll() is None and time.monotonic() - self._spoke < _SURE * PATIENCE
        return alive and self._started == (os.getpid(), dict(environment))

    def lines(self) -> list[str]:
        """What it said since it was asked last, once there is something. Raises CompilerError if it
        died."""
        said = os.read(self.stdout.fileno(), 1 << 16)
        if not said:
            self._fail()
        self._spoke = time.monotonic()
        *lines, self._unfinished = (self._unfinished + said).split(b"\n")
        return [line.decode() for line in lines]

    def _fail(self) -> NoReturn:
        code = self._process.wait()
        last = "\n".join(self._log.read_text().strip().splitlines()[-_LAST_WORDS:])
        raise CompilerError(
            f"AOTInductor failed on a segment (exit code {code}); `recreplay doctor` says what it "
            f"needs, `--compiler eager` does without it. The compiler's last words:\n{last}"
        )

    def stop(self) -> None:
        if self._started[0] != os.getpid():
            return  # it is our parent's
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self.stdout.close()
        with contextlib.suppress(OSError):  # what it did not read
            self._stdin.close()
        drop_scratch(self._scratch)


def compile_in_processes(
    jobs: Sequence[Mapping[str, object]],
    environment: Mapping[str, str],
    keep: bool,
    progress: Callable[[str], None],
    total: int,
) -> set[str]:
    """Do each job in a process of its own; they are of `total` segments. Returns the keys of those
    that have to be compiled for each bucket by itself.

    With `keep`, processes wait for later jobs afterwards. Raises CompilerError if one dies.
    """
    workers = []
    try:
        for job in jobs:
            workers.append(_worker(job, environment))
        apart = _wait(workers, total, progress)
    except BaseException:
        _stop(workers)
        raise
    if not keep:
        _stop(workers)
        return apart
    with _keeping:
        _kept.extend(workers)
        surplus = _kept[: -usable_cores()]
        del _kept[: -usable_cores()]
        atexit.unregister(_stop)
        atexit.register(_stop, _kept)
    _stop(surplus)
    return apart


def _worker(job: Mapping[str, object], environment: Mapping[str, str]) -> Worker:
    """A process that has begun the job: one that was kept, or a new one."""
    worker = _take(environment) or Worker(environment)
    worker.begin(job)
    return worker


def _take(environment: Mapping[str, str]) -> Worker | None:
    with _keeping:
        found = next((w for w in _kept if w.serves(environment)), None)
        if found is not None:
            _kept.remove(found)
        return found


def _stop(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.stop()


def _wait(workers: Sequence[Worker], total: int, progress: Callable[[str], None]) -> set[str]:
    """Until all are done; a sign of life every few seconds, since one segment can take a minute.
    Returns the keys of segments that have to be compiled apart."""
    begun, done = time.monotonic(), 0
    apart: set[str] = set()
    with selectors.DefaultSelector() as waiting:
        for worker in workers:
            waiting.register(worker.stdout, selectors.EVENT_READ, worker)
        while waiting.get_map():
            ready, before = waiting.select(timeout=_SIGN_OF_LIFE), done
            for key, _ in ready:
                lines = key.data.lines()
                done += sum(line.startswith(f"{COMPILED} ") for line in lines)
                apart |= {line.split()[1] for line in lines if line.startswith(f"{APART} ")}
                if DONE in lines:
                    waiting.unregister(key.fileobj)
            if ready and done == before:
                continue  # a worker said something else
            spent = time.monotonic() - begun
            progress(f"compiled {done} of {total} segments after {spent:.0f} s")
    return apart
