"""Measurements in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recreplay.runtime.errors import RecReplayError
from recreplay.tools.bench.apart import apart

WORK = """
import os
from recreplay.runtime.errors import CaptureError

def double(x, say):
    say(f"doubling {x}")
    say("done")
    return os.getpid(), 2 * x

def refuse(x, say):
    raise CaptureError(f"{x} cannot be captured")

def fail(x, say):
    raise KeyError(x)

def die(x, say):
    os._exit(x)

def stop(x, say):
    raise KeyboardInterrupt
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that a new process can import too."""
    (tmp_path / "work_apart.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    return __import__("work_apart")


def test_results_and_what_is_said_on_the_way(work: Any) -> None:
    said: list[str] = []
    process, result = apart(work.double, 21, progress=said.append)
    assert result == 42
    assert process != os.getpid()
    assert said == ["doubling 21", "done"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refuse", r"^3 cannot be captured$"),
        ("fail", r"^KeyError: 3$"),
        ("die", r"^the process that measured ended without a result \(exit code 3\)$"),
    ],
)
def test_errors_are_ours(work: Any, name: str, message: str) -> None:
    with pytest.raises(RecReplayError, match=message):
        apart(getattr(work, name), 3, progress=lambda _: None)


def test_an_interrupt_is_told_of_by_who_waits_alone(
    work: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecReplayError, match=r"\(exit code 130\)$"):
        apart(work.stop, 3, progress=lambda _: None)
    assert capfd.readouterr().err == ""


def test_a_model_that_cannot_be_made_is_told_of(
    model_file: Path, invoke: Callable[..., Any]
) -> None:
    """Of several models, each of which is measured in a process of its own."""
    broken = model_file.with_name("broken.py")
    broken.write_text("def build():\n    raise OSError('no weights here')\n")
    targets = (f"{broken}:build", f"{model_file}:build")
    sizes = ("--buckets", "2,4", "--runs", "3", "--compiler", "eager")
    failed = invoke("bench", *targets, *sizes, "--peers", "eager")
    assert failed.exit_code == 1
    assert "no weights here" in failed.stderr
