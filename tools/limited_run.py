"""A command with a time limit, which takes all that it started along."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_GRACE = 5.0  # seconds to write down what was found
_GLANCE = 1.0  # seconds between looks at what it writes
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Silence:
    """A file that the command writes to, and how many seconds it may leave it as it is."""

    file: Path
    seconds: float

    def lasts(self, begun: float) -> bool:
        written = self.file.stat().st_mtime if self.file.exists() else 0.0
        return time.time() - max(written, begun) > self.seconds


def run_limited(
    command: Sequence[str],
    seconds: float,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    silence: Silence | None = None,
) -> tuple[int | None, str]:
    """Exit code and output; None where the time was up. Then all of it is interrupted, as by
    Ctrl-C, and killed if it does not end within 5 s. After a silence it is killed at once, which is
    its exit code."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    begun, end = time.time(), time.monotonic() + max(seconds, 0.0)
    try:
        while True:
            left = end - time.monotonic()
            try:
                said, _ = process.communicate(timeout=max(min(left, _GLANCE), 0.0))
                return process.returncode, said
            except subprocess.TimeoutExpired:
                if left <= 0:
                    break
                if silence is not None and silence.lasts(begun):
                    _signal(process, signal.SIGKILL)
                    said, _ = process.communicate()
                    return process.returncode, f"silent for {silence.seconds:.0f} s; {said}"
        _signal(process, signal.SIGINT)
        try:
            said, _ = process.communicate(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            said, _ = process.communicate()
        return None, said
    except BaseException:
        _signal(process, signal.SIGKILL)
        raise


def _signal(process: subprocess.Popen[str], number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended meanwhile
        os.killpg(process.pid, number)


def end_with_parent() -> None:
    """Be killed when the process that started this one ends, however it does: on a machine that is
    lent, what goes on is in the way of whatever is measured next."""
    with suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, int(signal.SIGKILL))
