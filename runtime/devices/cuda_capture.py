"""Stream capture, beside whatever else the process does on the device.

- Capture mode is thread-local, so that other threads may go on allocating. Synchronising the whole
  device, as `torch.cuda.synchronize` does, ends a capture all the same (CUDA's programming guide on
  cross-stream dependencies: a handle that encompasses an active capture may not be synchronised),
  and whose call that was cannot be known beforehand. So a capture that was ended is tried again.
- One capture at a time: the garbage collector, which is off meanwhile because a finaliser that
  calls CUDA would end the capture, and cuBLAS' workspaces are the process's.
- cuBLAS keeps one workspace per (handle, stream). It is cleared before a capture, so that the
  workspace is allocated inside of the graph's own pool, and after it, so that nobody else frees or
  shares it.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from recreplay.runtime.devices.cuda_bindings import bindings, checked
from recreplay.runtime.errors import RecReplayError

_ATTEMPTS = 5
_ONE = threading.Lock()
Pool = Any  # what torch.cuda.graph_pool_handle gives, of a private type


class _Ended(Exception):
    """The capture was invalidated; the cause is what was told of it."""


def capture_graph(
    issue: Callable[[], None], stream: torch.cuda.Stream, pool: Pool
) -> torch.cuda.CUDAGraph:
    """The graph of what `issue` queues on `stream`, and on streams that it forks from it and joins.

    The graph is kept, so that it can be read, and not instantiated yet. Its `pool()` is another one
    than `pool` where a capture was ended meanwhile: torch's allocators take that for recording on.

    Raises:
        RecReplayError: it was ended each time, by a call that captures forbid.
    """
    for _ in range(_ATTEMPTS):
        try:
            with _ONE, _quiet_collector():
                torch._C._cuda_clearCublasWorkspaces()
                try:
                    return _capture(issue, stream, pool)
                finally:
                    torch._C._cuda_clearCublasWorkspaces()
        except _Ended as ended:
            told, pool = ended.__cause__, torch.cuda.graph_pool_handle()
    raise RecReplayError(
        f"recording a CUDA graph was ended by a call that captures forbid, {_ATTEMPTS} times, "
        f"the last time with: {told}; expected no segment that synchronises, copies pageable "
        "memory or reads a value back, and no other thread that calls torch.cuda.synchronize() "
        "all the time"
    ) from told


def _capture(
    issue: Callable[[], None], stream: torch.cuda.Stream, pool: Pool
) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.inference_mode(), torch.cuda.stream(stream):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            issue()
            graph.capture_end()
        except BaseException as error:
            going_on = _is_capturing(stream)
            try:
                graph.capture_end()
            except RuntimeError:
                # What was issued tells more than what it broke. torch 2.11's allocator still waits
                # for the end, and would not free memory that several streams used any more; 2.13's
                # does not. Both keep the pool for a graph that is none.
                with suppress(RuntimeError):
                    torch._C._cuda_endAllocateToPool(stream.device_index, pool)
                torch._C._cuda_releasePool(stream.device_index, pool)
            if going_on or not isinstance(error, Exception):
                raise
            raise _Ended from error
    return graph


def _is_capturing(stream: torch.cuda.Stream) -> bool:
    """Whether a capture on `stream` is under way that nothing has broken."""
    cudart = bindings()
    (status,) = checked(cudart.cudaStreamIsCapturing(cudart.cudaStream_t(stream.cuda_stream)))
    return bool(status == cudart.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive)


@contextmanager
def _quiet_collector() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
