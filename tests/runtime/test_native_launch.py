"""How a package of the CPU is called: without the interpreter lock, unless it costs more to have it
back."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recreplay.capture.compilers.c_library import build_c_library
from recreplay.capture.compilers.toolchain import inductor_problem
from recreplay.runtime.builtin_call import NO_ARGUMENT, builtin
from recreplay.runtime.native import _Call


class Launched:
    """A package whose one function is what a test says."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.struct = _Call(name=b"it")
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


@contextmanager
def busy() -> Iterator[None]:
    """Another thread runs Python, and gives the lock away when it has to."""
    ended = False

    def spin() -> None:
        while not ended:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        ended = True
        thread.join()


def sleep(launched: Launched, microseconds: int, times: int) -> None:
    for _ in range(times):
        launched.run(ctypes.CDLL(None).usleep, microseconds)
    launched.struct.calls = 1  # the next one does not look how it is now


def test_alone_the_lock_is_let_go(launched: Launched) -> None:
    sleep(launched, 50, 60)
    assert not launched.holds_lock()


def test_beside_a_busy_thread_the_lock_is_kept(launched: Launched) -> None:
    with busy():
        sleep(launched, 50, 60)
        message = r"^segment it failed \(code 1\); what it said is on stderr$"
        with pytest.raises(RuntimeError, match=message):
            launched.run(ctypes.pythonapi.PyGILState_Check)


def test_the_lock_is_let_go_again_when_nobody_wants_it(launched: Launched) -> None:
    with busy():
        sleep(launched, 50, 60)
        assert launched.holds_lock()
    for _ in range(5000):
        launched.run(ctypes.CDLL(None).usleep, 1)
    launched.struct.calls = 1
    assert not launched.holds_lock()


def test_long_calls_let_go_whatever_they_wait(launched: Launched) -> None:
    with busy():
        sleep(launched, 50, 60)
        sleep(launched, 4000, 40)
        assert not launched.holds_lock()
