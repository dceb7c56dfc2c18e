"""The CPU: a graph is the list of calls in issue order, run one after the other on static
buffers."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch

from recreplay.runtime.devices.base import Launch, Recording
from recreplay.runtime.processor import instruction_sets


def _nothing() -> None:
    """What copying between host and device is here; recordings leave it out."""


class CpuStaging:
    """Host and device are one memory."""

    upload = download = staticmethod(_nothing)

    def __init__(self, nbytes: int) -> None:
        self.device = torch.zeros(max(nbytes, 1), dtype=torch.uint8, device="cpu")
        self.host: np.ndarray[Any, Any] = self.device.numpy()

    def part(self, nbytes: int) -> CpuStaging:
        return self


class CpuRecording:
    """Collects the calls; events and streams need nothing, since the list is in issue order."""

    def __init__(self) -> None:
        self.calls: list[Launch] = []

    def on(self, stream: int) -> AbstractContextManager[object]:
        return nullcontext()

    def launch(self, call: Launch) -> None:
        if call is not _nothing:
            self.calls.append(call)

    def record_event(self, stream: int) -> object:
        return None

    def wait_event(self, stream: int, event: object) -> None:
        pass


class CpuGraph:
    """`replay` is the one call itself where there is no more: most graphs are one segment."""

    def __init__(self, calls: list[Launch]) -> None:
        self._calls = tuple(calls)
        self.replay: Launch = calls[0] if len(calls) == 1 else self._in_order

    def replay_fed(self) -> None:
        self.replay()  # nothing is uploaded anyway

    def close(self) -> None:
        self._calls = ()
        self.replay = self._in_order

    def _in_order(self) -> None:
        for call in self._calls:
            call()


@cache
def _forks_have_one_thread() -> None:
    """A process that is forked has none of the threads that OpenMP has made before, and would wait
    for them in everything that torch shares among threads: refreshes, and eager segments."""
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class CpuDevice:
    type = "cpu"
    torch_device = torch.device("cpu")
    helpers = 0  # the cores are for replays

    def __init__(self) -> None:
        _forks_have_one_thread()

    def fingerprint(self) -> dict[str, str]:
        return {
            "torch": torch.__version__.partition("+")[0],
            "device": "cpu",
            "machine": platform.machine(),
            "instructions": " ".join(instruction_sets()),
        }

    def staging(self, nbytes: int) -> CpuStaging:
        return CpuStaging(nbytes)

    def own_tensor(self, value: object) -> torch.Tensor | None:
        return None

    def feeding(self) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self, streams: int, issue: Callable[[Recording], None]) -> CpuGraph:
        recording = CpuRecording()
        issue(recording)
        graph = CpuGraph(recording.calls)
        graph.replay()  # first calls bind symbols and touch pages, which no request should pay for
        return graph

    def close(self) -> None:
        pass
