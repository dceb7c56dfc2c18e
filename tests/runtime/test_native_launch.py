"""How a package of the CPU is called: with the interpreter lock where that is over soon."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recreplay.capture.compilers.c_library import build_c_library
from recreplay.capture.compilers.toolchain import inductor_problem
from recreplay.runtime.builtin_call import NO_ARGUMENT, builtin
from recreplay.runtime.native import _LONG, _Call

_CALLS = 60  # after which the average is what the last ones took


class Launched:
    """A package whose one function is what a test says."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.struct = _Call(name=b"it", usual=_LONG)
        launch: Callable[[], Any] = builtin(library.recreplay_launch, NO_ARGUMENT, self.struct)
        self.launch = launch

    def run(self, function: Any, argument: int = 0) -> None:
        self.struct.run = ctypes.cast(function, ctypes.c_void_p).value
        self.struct.container = argument
        self.launch()

    def holds_lock(self) -> bool:
        """Whether the function of the next call has Python's lock: one that is not 0 has failed."""
        try:
            self.run(ctypes.pythonapi.PyGILState_Check)
        except RuntimeError:
            return True
        return False


@pytest.fixture
def launched(tmp_path: Path) -> Launched:
    if problem := inductor_problem("cpu"):
        pytest.skip(problem)
    build_c_library("launch.c", tmp_path / "launch.so")
    return Launched(ctypes.CDLL(str(tmp_path / "launch.so")))


def test_the_lock_is_kept_for_calls_that_prove_short(launched: Launched) -> None:
    assert not launched.holds_lock()
    for _ in range(_CALLS):
        launched.holds_lock()
    message = r"^segment it failed \(code 1\); what it said is on stderr$"
    with pytest.raises(RuntimeError, match=message):
        launched.run(ctypes.pythonapi.PyGILState_Check)


def test_the_lock_is_let_go_for_calls_that_become_long(launched: Launched) -> None:
    for _ in range(_CALLS):
        launched.holds_lock()
    assert launched.holds_lock()
    sleep = ctypes.CDLL(None).usleep
    for _ in range(10):
        launched.run(sleep, 1000)
    assert not launched.holds_lock()


def test_one_interruption_is_soon_forgotten(launched: Launched) -> None:
    for _ in range(_CALLS):
        launched.holds_lock()
    launched.run(ctypes.CDLL(None).usleep, 100_000)
    assert launched.holds_lock()
