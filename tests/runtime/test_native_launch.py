"""How a package of the CPU and a graph of CUDA are called: without the interpreter lock, unless it
costs more to have it back."""

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
from recreplay.runtime.devices.cuda_replay import _Replay
from recreplay.runtime.lock_times import LockTimes
from recreplay.runtime.native import _Call


def address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


class Package:
    """One whose function is what a test says."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._struct = _Call(name=b"it")
        self.lock: LockTimes = self._struct.lock
        self.launch: Callable[[], Any] = builtin(
            library.recreplay_launch, NO_ARGUMENT, self._struct
        )

    def run(self, function: Any, argument: int = 0) -> None:
        self._struct.run = address(function)
        self._struct.container = argument
        self.launch()

    def holds_lock(self) -> bool:
        """Whether the function of the next call has Python's lock: one that is not 0 has failed."""
        try:
            self.run(ctypes.pythonapi.PyGILState_Check)
        except RuntimeError:
            return True
        return False


class Graph:
    """One whose wait is what a test says."""

    def __init__(self, library: ctypes.CDLL) -> None:
        nothing = address(ctypes.CDLL(None).abs)  # of 0
        self.struct = _Replay(launch=nothing)
        self.lock: LockTimes = self.struct.lock
        self.replay: Callable[[], int] = builtin(library.recreplay_replay, NO_ARGUMENT, self.struct)

    def run(self, function: Any, argument: int = 0) -> int:
        self.struct.await_stream = address(function)
        self.struct.stream = argument
        return self.replay()

    def holds_lock(self) -> bool:
        return bool(self.run(ctypes.pythonapi.PyGILState_Check))


@pytest.fixture
def library(tmp_path: Path) -> ctypes.CDLL:
    if problem := inductor_problem("cpu"):
        pytest.skip(problem)
    build_c_library("launch.c", tmp_path / "launch.so")
    return ctypes.CDLL(str(tmp_path / "launch.so"))


@pytest.fixture(params=[Package, Graph])
def launched(library: ctypes.CDLL, request: pytest.FixtureRequest) -> Package | Graph:
    made: Package | Graph = request.param(library)
    return made


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


def sleep(launched: Package | Graph, microseconds: int, times: int) -> None:
    for _ in range(times):
        launched.run(ctypes.CDLL(None).usleep, microseconds)
    launched.lock.calls = 1  # the next one does not look how it is now


def test_alone_the_lock_is_let_go(launched: Package | Graph) -> None:
    sleep(launched, 50, 60)
    assert not launched.holds_lock()


def test_beside_a_busy_thread_the_lock_is_kept(launched: Package | Graph) -> None:
    with busy():
        sleep(launched, 50, 60)
        assert launched.holds_lock()


def test_the_lock_is_let_go_again_when_nobody_wants_it(launched: Package | Graph) -> None:
    with busy():
        sleep(launched, 50, 60)
        assert launched.holds_lock()
    for _ in range(5000):
        launched.run(ctypes.CDLL(None).usleep, 1)
    launched.lock.calls = 1
    assert not launched.holds_lock()


def test_long_calls_let_go_whatever_they_wait(launched: Package | Graph) -> None:
    with busy():
        sleep(launched, 50, 60)
        sleep(launched, 4000, 40)
        assert not launched.holds_lock()


def test_a_package_that_fails_is_told(library: ctypes.CDLL) -> None:
    message = r"^segment it failed \(code 7\); what it said is on stderr$"
    with pytest.raises(RuntimeError, match=message):
        Package(library).run(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7))


@pytest.mark.parametrize("asleep", [False, True])
@pytest.mark.parametrize("fails", ["", "launch", "record", "wait"])
def test_a_graph_is_launched_then_waited_for(
    library: ctypes.CDLL, fails: str, asleep: bool
) -> None:
    """Whatever failed, and an event that cannot be recorded is not waited for."""
    asked = []

    def call(name: str, count: int) -> Any:
        def made(*given: int | None) -> int:
            asked.append((name, *given))
            return 700 if name == fails else 0

        return ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * count)(made)

    calls = [call("launch", 2), call("record", 2), call("wait", 1), call("wait", 1)]
    struct = _Replay(*map(address, calls), 5, 7, 9 if asleep else None)
    replay = builtin(library.recreplay_replay, NO_ARGUMENT, struct)
    found = divmod(replay(), 1 << 16)
    records = [("record", 9, 7)] if asleep else []
    waits = [("wait", 9 if asleep else 7)] if fails != "record" or not asleep else []
    assert asked == [("launch", 5, 7), *records, *waits]
    waited = fails == "wait" or (fails == "record" and asleep)
    assert found == (700 if fails == "launch" else 0, 700 if waited else 0)
