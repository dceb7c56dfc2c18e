"""CUDA: streams of our own, one captured graph per bucket, copies inside the graph.

Every rule here has a reason that bit somebody:

- One memory pool for all graphs of a device object, so that its buckets share memory: they never
  run at the same time, and what a request returns has left the device before the next one starts.
- Nothing waits for the whole device, which CUDA refuses while anybody records a graph there: a
  runtime would break the loading of another one. What is waited for are streams.
- Values that cross streams are buffers made before the capture and kept for the graph's life.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recreplay.runtime.devices.base import Launch, Recording
from recreplay.runtime.devices.cuda_bindings import bindings, checked
from recreplay.runtime.devices.cuda_capture import capture_graph
from recreplay.runtime.devices.cuda_replay import (
    BindingsReplays,
    NativeReplays,
    Replay,
    Replays,
    SleepEvent,
)
from recreplay.runtime.devices.cuda_streams import give_back, take_stream
from recreplay.runtime.errors import RecReplayError, ReplayError
from recreplay.runtime.processor import instruction_sets
from recreplay.runtime.serving import Wait
from recreplay.runtime.tensor_exchange import gpu_of

_STICKS = "after an error that sticks to the context, the process must be started anew"
# One core (Zen 3) takes in 12 GB/s of int64 ids, and a link (PCIe 5, 16 lanes) carries about 55
# GB/s of what is staged of them, half as much: eight cores keep up.
_HELPERS = 7
_WARM_UPS = 3  # torch's own number for graphed callables: lazy loading, autotuning, then steady


class CudaStaging:
    """Pinned host bytes and device bytes; one copy node each way."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        nbytes = max(nbytes, 1)
        self.pinned = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)
        self.host: np.ndarray[Any, Any] = self.pinned.numpy()
        self.device = torch.zeros(nbytes, dtype=torch.uint8, device=device)

    def part(self, nbytes: int) -> CudaStaging:
        """The first bytes of this staging memory, so that a bucket copies no more than it holds."""
        part = type(self).__new__(type(self))
        part.pinned = self.pinned[:nbytes]
        part.host = self.host[:nbytes]
        part.device = self.device[:nbytes]
        return part

    def upload(self) -> None:
        self.device.copy_(self.pinned, non_blocking=True)

    def download(self) -> None:
        self.pinned.copy_(self.device, non_blocking=True)


class CudaRecording:
    """Queues on real streams; under capture this draws the graph, before it, it warms up."""

    def __init__(self, streams: list[torch.cuda.Stream]) -> None:
        self._streams = streams
        self._events: list[torch.cuda.Event] = []  # kept alive to the end of the capture

    def on(self, stream: int) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._streams[stream])

    def launch(self, call: Launch) -> None:
        call()

    def record_event(self, stream: int) -> object:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._streams[stream])
        self._events.append(event)
        return event

    def wait_event(self, stream: int, event: object) -> None:
        assert isinstance(event, torch.cuda.Event)
        self._streams[stream].wait_event(event)


class CudaGraph:
    """A captured bucket: one launch and one wait, which `run` does, and `run_fed` where the inputs
    are on the device."""

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        stream: torch.cuda.Stream,
        run: Replay,
        run_fed: Replay,
        upload_node: Any,
    ) -> None:
        """`upload_node`: what `upload_node` finds, or None in a graph that reads the host's memory
        itself."""
        cudart = bindings()
        self.graph = graph
        self._stream = stream
        self._exec = cudart.cudaGraphExec_t(graph.raw_cuda_graph_exec())
        self._on = cudart.cudaStream_t(stream.cuda_stream)
        self._run, self._run_fed = run, run_fed
        self._uploads = True
        self._upload_node = upload_node
        # A launch wants its device to be the thread's current one, and whose thread a request comes
        # on is not ours to say. With one device, it is.
        several = torch.cuda.device_count() > 1
        self._here = torch.cuda.device(stream.device) if several else None

    def replay(self) -> None:
        if not self._uploads:
            self._set_uploads(True)
        self._replay(self._run)

    def replay_fed(self) -> None:
        if self._uploads:
            self._set_uploads(False)
        self._replay(self._run_fed)

    def _set_uploads(self, on: bool) -> None:
        """Enable or disable the copy of the inputs, for the launches from now on."""
        if self._upload_node is None:
            return
        cudart = bindings()
        (done,) = cudart.cudaGraphNodeSetEnabled(self._exec, self._upload_node, int(on))
        if int(done):
            raise ReplayError(f"switching the upload of a CUDA graph failed: {done!r}; {_STICKS}")
        self._uploads = on

    def _replay(self, run: Replay) -> None:
        if self._here is None:
            failed = run()
        else:
            with self._here:
                failed = run()
        if failed:
            launched, done = (bindings().cudaError_t(code) for code in divmod(failed, 1 << 16))
            raise ReplayError(
                f"replaying a CUDA graph failed: launch {launched!r}, wait {done!r}; {_STICKS}"
            )

    def upload(self) -> None:
        """Put the instantiated graph on the device now, not with the first request."""
        cudart = bindings()
        checked(cudart.cudaGraphUpload(self._exec, self._on))
        self._stream.synchronize()

    def close(self) -> None:
        # A broken context has told its replay so; closing is not to hide that.
        with suppress(RuntimeError):
            self._stream.synchronize()
        self.graph.reset()


class CudaDevice:
    type = "cuda"

    def __init__(self, index: int, wait: Wait = "spin", launcher: Path | None = None) -> None:
        """`launcher`: where an artifact has its library of launch.c, if it has one."""
        self.torch_device = torch.device("cuda", index)
        self.helpers = min(_HELPERS, len(os.sched_getaffinity(0)) - 1)
        self._streams: list[torch.cuda.Stream] = []
        self._staged: list[torch.Tensor] = []  # pinned
        with self._current():
            torch.cuda.init()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
            self._replays: Replays = BindingsReplays()
            if launcher is not None and launcher.exists():
                self._replays = NativeReplays(launcher)
            self._asleep = SleepEvent() if wait == "block" else None

    def fingerprint(self) -> dict[str, str]:
        found = torch.cuda.get_device_properties(self.torch_device)
        return {
            "torch": torch.__version__.partition("+")[0],
            "device": "cuda",
            "cuda": str(torch.version.cuda),
            "gpu": found.name,
            "compute_capability": f"{found.major}.{found.minor}",
            "multiprocessors": str(found.multi_processor_count),
            "instructions": " ".join(instruction_sets()),
        }

    def staging(self, nbytes: int) -> CudaStaging:
        made = CudaStaging(nbytes, self.torch_device)
        self._staged.append(made.pinned)
        return made

    def own_tensor(self, value: object) -> torch.Tensor | None:
        if isinstance(value, torch.Tensor):
            return value.detach() if value.device == self.torch_device else None
        if gpu_of(value) != self.torch_device.index:
            return None
        return torch.utils.dlpack.from_dlpack(value)

    @contextmanager
    def feeding(self) -> Iterator[None]:
        main = self._streams[0]
        main.wait_stream(torch.cuda.current_stream(self.torch_device))
        with torch.cuda.stream(main):
            yield

    def record(self, streams: int, issue: Callable[[Recording], None]) -> CudaGraph:
        with self._current():
            return self._record(streams, issue)

    def _current(self) -> AbstractContextManager[object]:
        """This device is the thread's current one inside; afterwards it is the caller's again."""
        return torch.cuda.device(self.torch_device)

    def _record(self, streams: int, issue: Callable[[Recording], None]) -> CudaGraph:
        while len(self._streams) < streams:  # the main one, which carries the trunk, goes first
            self._streams.append(take_stream(self.torch_device, urgent=not self._streams))
        used = self._streams[:streams]
        # Weights and buffers are filled there, and our streams wait for none but their own.
        torch.cuda.current_stream(self.torch_device).synchronize()
        for _ in range(_WARM_UPS):
            with torch.inference_mode(), torch.cuda.stream(used[0]):
                issue(self.new_recording(used, capturing=False))
            used[0].synchronize()  # which the others have joined
        recordings = []  # each of an attempt, whose events live to the end of its capture

        def issue_all() -> None:
            recordings.append(self.new_recording(used, capturing=True))
            issue(recordings[-1])

        graph = capture_graph(issue_all, used[0], self._pool)
        self._pool = graph.pool()
        graph.instantiate()
        event = self._asleep.handle if self._asleep else None
        handles = graph.raw_cuda_graph_exec(), used[0].cuda_stream, event
        # What is fed comes after work of the caller's, which may be a callback of Python's: nobody
        # may keep the interpreter's lock while he waits for that.
        runs = self._replays(*handles), BindingsReplays()(*handles)
        captured = CudaGraph(graph, used[0], *runs, self.upload_node(graph))
        captured.upload()
        return captured

    def new_recording(self, streams: list[torch.cuda.Stream], capturing: bool) -> CudaRecording:
        """What `record` queues on; a device that watches its captures overrides this."""
        return CudaRecording(streams)

    def upload_node(self, graph: torch.cuda.CUDAGraph) -> Any:
        """What brings the inputs of a graph; a device whose graphs bring none overrides this."""
        return upload_node(graph)

    def close(self) -> None:
        try:
            for stream in self._streams:
                stream.synchronize()
        except RuntimeError:  # the context is broken
            for pinned in self._staged:
                _keep_for_good(pinned)
        self._staged.clear()
        if self._asleep is not None:
            self._asleep.close()
        self._replays.close()
        give_back(self._streams)
        self._streams.clear()


def _keep_for_good(pinned: torch.Tensor) -> None:
    """Free it never, not even when the interpreter ends: torch records events on the streams that
    copied pinned memory when it is freed, and ends the process where the context is broken."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(pinned))


def upload_node(graph: torch.cuda.CUDAGraph) -> Any:
    """The node that all others come after: the copy of the inputs to the device."""
    cudart = bindings()
    raw = cudart.cudaGraph_t(graph.raw_cuda_graph())
    _, count = checked(cudart.cudaGraphGetRootNodes(raw, 0))
    nodes, _ = checked(cudart.cudaGraphGetRootNodes(raw, count))
    kinds = [checked(cudart.cudaGraphNodeGetType(node))[0] for node in nodes]
    if kinds != [cudart.cudaGraphNodeType.cudaGraphNodeTypeMemcpy]:
        raise RecReplayError(
            f"a captured graph begins with {kinds}; expected one copy, of the inputs, before which "
            "nothing else may run"
        )
    return nodes[0]
