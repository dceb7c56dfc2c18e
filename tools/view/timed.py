"""A CPU device that remembers the calls of every graph it records, so that each can be timed."""

from __future__ import annotations

from collections.abc import Callable

from recreplay.runtime.devices.base import Launch, Recording
from recreplay.runtime.devices.cpu import CpuDevice, CpuGraph, CpuRecording


class TimedDevice(CpuDevice):
    """Records as the CPU does. `calls` are those of each graph, in the order of recording."""

    def __init__(self) -> None:
        self.calls: list[tuple[Launch, ...]] = []

    def record(self, streams: int, issue: Callable[[Recording], None]) -> CpuGraph:
        recording = CpuRecording()
        issue(recording)
        self.calls.append(tuple(recording.calls))
        graph = CpuGraph(recording.calls)
        graph.replay()  # as the CPU device does: first calls are slow
        return graph
