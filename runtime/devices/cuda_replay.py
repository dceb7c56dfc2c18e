"""One launch of a graph and one wait for it, in one call.

By the library of launch.c, which calls CUDA as torch does and lets go of Python's lock once, or not
at all where it waits longer for the lock than for the GPU. Without it, as capture had no C
compiler, by cuda-bindings: two calls, after each of which other threads may have the lock for 5 ms.

Neither makes a stream current in torch, which costs more than the launch.
"""

from __future__ import annotations

import ctypes
from _ctypes import dlclose
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from recreplay.runtime.builtin_call import NO_ARGUMENT, builtin
from recreplay.runtime.devices.cuda_bindings import bindings, checked
from recreplay.runtime.errors import EnvironmentMismatchError
from recreplay.runtime.lock_times import LockTimes

# 0, or the errors of CUDA's runtime: that of the launch times 2**16, and that of the wait.
Replay = Callable[[], int]


class Replays(Protocol):
    """Makes calls of graphs. Handles are numbers. An event is waited for in place of its stream."""

    def __call__(self, graph: int, stream: int, event: int | None) -> Replay: ...

    def close(self) -> None: ...


class BindingsReplays:
    """By cuda-bindings."""

    def __call__(self, graph: int, stream: int, event: int | None) -> Replay:
        cudart = bindings()
        success = cudart.cudaError_t.cudaSuccess
        launch, started = cudart.cudaGraphLaunch, cudart.cudaGraphExec_t(graph)
        on, record = cudart.cudaStream_t(stream), cudart.cudaEventRecord
        if event is None:
            wait, awaited = cudart.cudaStreamSynchronize, on
        else:
            wait, awaited = cudart.cudaEventSynchronize, cudart.cudaEvent_t(event)

        def replay() -> int:
            (launched,) = launch(started, on)
            done = success
            if event is not None:
                # An error of the stream sticks, and whoever asks next is told it as well.
                (done,) = record(awaited, on)
            if done == success:
                (done,) = wait(awaited)
            if launched == success and done == success:
                return 0
            return int(launched) << 16 | int(done)

        return replay

    def close(self) -> None:
        pass


class _Replay(ctypes.Structure):
    """`struct recreplay_replay` of launch.c."""

    _fields_ = (
        ("launch", ctypes.c_void_p),
        ("record", ctypes.c_void_p),
        ("await_stream", ctypes.c_void_p),
        ("await_event", ctypes.c_void_p),
        ("graph", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
        ("event", ctypes.c_void_p),
        ("lock", LockTimes),
    )


class NativeReplays:
    """By the library of launch.c at `path`."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        # A library gives what those that it was linked with have: CUDA's runtime, as torch uses it.
        library = Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"
        cuda = ctypes.CDLL(str(library))
        names = (
            "cudaGraphLaunch",
            "cudaEventRecord",
            "cudaStreamSynchronize",
            "cudaEventSynchronize",
        )
        try:
            self._calls = [ctypes.cast(getattr(cuda, name), ctypes.c_void_p) for name in names]
        except AttributeError as error:
            raise EnvironmentMismatchError(
                f"{library} does not lead to CUDA's runtime ({error}); expected a build of torch "
                "that is linked with libcudart.so, as those from PyPI are"
            ) from error

    def __call__(self, graph: int, stream: int, event: int | None) -> Replay:
        struct = _Replay(*self._calls, graph, stream, event)
        return builtin(self._library.recreplay_replay, NO_ARGUMENT, struct)

    def close(self) -> None:
        dlclose(self._library._handle)


class SleepEvent:
    """What a thread sleeps for: `cudaStreamSynchronize` keeps a core of its own meanwhile."""

    def __init__(self) -> None:
        cudart = bindings()
        flags = cudart.cudaEventBlockingSync | cudart.cudaEventDisableTiming
        (event,) = checked(cudart.cudaEventCreateWithFlags(flags))
        self._destroy = cudart.cudaEventDestroy
        self._event = event
        self.handle = int(event)

    def close(self) -> None:
        self._destroy(self._event)
