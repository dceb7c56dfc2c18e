"""Processes that tests wait for and are not the parents of."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest


def wait_until_gone(pid: int) -> None:
    """Until the process has ended, waited for or not; one that goes on fails the test."""
    state = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        if not state.exists() or ") Z " in state.read_text():
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail(f"process {pid} went on")
