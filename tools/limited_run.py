"""A command with a time limit, which takes all that it started along."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_GRACE = 20.0  # seconds to write down what was found


def run_limited(
    command: Sequence[str],
    seconds: float,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> tuple[int | None, str]:
    """Exit code and output; None where the time was up. Then all of it is interrupted, as by
    Ctrl-C, and killed if it does not end within 20 s."""
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
    try:
        said, _ = process.communicate(timeout=max(seconds, 0.0))
        return process.returncode, said
    except subprocess.TimeoutExpired:
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
