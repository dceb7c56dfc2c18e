"""What capture and replay need of a device: streams, events, capture, replay, staging memory.

The same code drives both devices (`recreplay.runtime.record`); the CPU's events and streams are
nothing at all, and CUDA's are CUDA's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch

Launch = Callable[[], object]


class Staging(Protocol):
    """A packed byte buffer that requests fill on the host and graphs read on the device, or
    back."""

    host: np.ndarray[Any, Any]  # uint8[nbytes]
    device: torch.Tensor  # uint8[nbytes]

    def part(self, nbytes: int) -> Staging:
        """The first bytes, so that a bucket copies no more than it holds."""

    def upload(self) -> None:
        """Queue host -> device on the current stream, inside the graph."""

    def download(self) -> None:
        """Queue device -> host on the current stream, inside the graph."""


class Recording(Protocol):
    """One capture under way. Streams are numbers; 0 is the main one, where capture begins and
    ends."""

    def on(self, stream: int) -> AbstractContextManager[object]:
        """Make a stream current: what is launched inside goes there."""

    def launch(self, call: Launch) -> None:
        """Run a call on the current stream."""

    def record_event(self, stream: int) -> object:
        """Mark the present end of a stream."""

    def wait_event(self, stream: int, event: object) -> None:
        """Make everything that comes on `stream` wait for the event."""


class Graph(Protocol):
    """A recorded bucket."""

    @property
    def replay(self) -> Launch:
        """Run it once, and return when its outputs are on the host."""

    def replay_fed(self) -> None:
        """The same without the upload: the inputs are in the device's staging memory already."""

    def close(self) -> None: ...


class Device(Protocol):
    type: str
    torch_device: torch.device
    helpers: int  # threads that may help the one of a request to fill its staging memory

    def fingerprint(self) -> dict[str, str]:
        """What compiled code depends on, by name: compared at load with what capture saw."""

    def staging(self, nbytes: int) -> Staging: ...

    def own_tensor(self, value: object) -> torch.Tensor | None:
        """`value` as a tensor if it lies in memory of this device that the host cannot read."""

    def feeding(self) -> AbstractContextManager[object]:
        """What is queued inside comes after what the caller has queued on the device, and before
        what is replayed next."""

    def record(self, streams: int, issue: Callable[[Recording], None]) -> Graph:
        """Warm up, then capture what `issue` queues on `streams` streams."""

    def close(self) -> None: ...
