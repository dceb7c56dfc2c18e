"""`cuda.bindings.runtime` on the emulated runtime: its own types and enumerations, our calls."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_int, c_size_t, c_ulonglong, c_void_p
from typing import Any
from unittest.mock import patch

import cuda.bindings.runtime as cudart

_PLAIN = (  # take handles and numbers, and give nothing but an error
    *("cudaStreamSynchronize", "cudaStreamDestroy", "cudaGraphLaunch", "cudaGraphUpload"),
    *("cudaEventRecord", "cudaEventSynchronize", "cudaEventDestroy", "cudaGraphNodeSetEnabled"),
)
Result = tuple[Any, ...]


class _Calls:
    """What `recreplay` calls, with the parameters and results of cuda-bindings."""

    def __init__(self, runtime: ctypes.CDLL) -> None:
        self._runtime = runtime

    def plain(self, name: str, *args: Any) -> Result:
        code = getattr(self._runtime, name)(*(c_void_p(int(a)) for a in args))
        return (cudart.cudaError_t(code),)

    def cudaDeviceGetStreamPriorityRange(self) -> Result:
        least, greatest = c_int(), c_int()
        code = self._runtime.cudaDeviceGetStreamPriorityRange(byref(least), byref(greatest))
        return cudart.cudaError_t(code), least.value, greatest.value

    def cudaStreamCreateWithPriority(self, flags: int, priority: int) -> Result:
        return self._new(cudart.cudaStream_t, "cudaStreamCreateWithPriority", flags, priority)

    def cudaEventCreateWithFlags(self, flags: int) -> Result:
        return self._new(cudart.cudaEvent_t, "cudaEventCreateWithFlags", flags)

    def _new(self, kind: Any, name: str, *args: int) -> Result:
        found = c_void_p()
        code = getattr(self._runtime, name)(byref(found), *args)
        return cudart.cudaError_t(code), kind(found.value or 0)

    def cudaGraphGetNodes(self, graph: Any, numNodes: int = 0) -> Result:
        return self._nodes("cudaGraphGetNodes", graph, numNodes)

    def cudaGraphGetRootNodes(self, graph: Any, pNumRootNodes: int = 0) -> Result:
        return self._nodes("cudaGraphGetRootNodes", graph, pNumRootNodes)

    def _nodes(self, name: str, graph: Any, room: int) -> Result:
        found, size = (c_void_p * max(room, 1))(), c_size_t(room)
        code = getattr(self._runtime, name)(
            c_void_p(int(graph)), found if room else None, byref(size)
        )
        nodes = [cudart.cudaGraphNode_t(found[i]) for i in range(min(room, size.value))]
        return cudart.cudaError_t(code), nodes, size.value

    def cudaGraphGetEdges(self, graph: Any, numEdges: int = 0) -> Result:
        size = c_size_t(numEdges)
        ends = [(c_void_p * max(numEdges, 1))() for _ in range(2)]
        code = self._runtime.cudaGraphGetEdges(
            c_void_p(int(graph)), *(ends if numEdges else (None, None)), None, byref(size)
        )
        lists = [[cudart.cudaGraphNode_t(end[i]) for i in range(numEdges)] for end in ends]
        return cudart.cudaError_t(code), *lists, [], size.value

    def cudaGraphNodeGetType(self, node: Any) -> Result:
        found = c_int()
        code = self._runtime.cudaGraphNodeGetType(c_void_p(int(node)), byref(found))
        return cudart.cudaError_t(code), cudart.cudaGraphNodeType(found.value)

    def cudaStreamIsCapturing(self, stream: Any) -> Result:
        status = c_int()
        code = self._runtime.cudaStreamIsCapturing(c_void_p(int(stream)), byref(status))
        return cudart.cudaError_t(code), cudart.cudaStreamCaptureStatus(status.value)

    def cudaStreamGetCaptureInfo(self, stream: Any) -> Result:
        status, number, graph = c_int(), c_ulonglong(), c_void_p()
        code = self._runtime.cudaStreamGetCaptureInfo(
            *(c_void_p(int(stream)), byref(status), byref(number), byref(graph)), None, None, None
        )
        state = cudart.cudaStreamCaptureStatus(status.value)
        handle = cudart.cudaGraph_t(graph.value or 0)
        return cudart.cudaError_t(code), state, number.value, handle, [], [], 0


def node_name(node: int) -> str:
    """What the emulator calls a node: the operator, or the kernel that a library launched."""
    named = ctypes.CDLL("libcudart.so.13").emulated_node_name
    named.restype, named.argtypes = ctypes.c_char_p, [c_void_p]
    return str(named(node).decode())


@contextmanager
def replaced() -> Iterator[None]:
    calls = _Calls(ctypes.CDLL("libcudart.so.13"))
    made: dict[str, Any] = {name: getattr(calls, name) for name in dir(calls) if "cuda" in name}
    for name in _PLAIN:
        made[name] = lambda *args, _name=name: calls.plain(_name, *args)
    with patch.multiple(cudart, **made):
        yield
