"""Requests whose arrays a GPU may still be writing, and which another thread will read.

Work that is queued later on the stream of the caller's thread comes after it; the thread of a lane
has a stream of its own, which has to be told.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from recreplay.runtime.tensor_exchange import gpu_of

Wait = Callable[[], None]


def settle(values: Sequence[Any]) -> tuple[Sequence[Any], Wait | None]:
    """The values, those of other libraries as tensors, and what makes the current stream of the
    thread that calls it wait for all that this thread's has queued now; None where there is
    nothing to wait for."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return values, None
    values = [_own(value, torch) for value in values]
    devices = {value.device for value in values if isinstance(value, torch.Tensor)}
    events = []
    for device in devices:
        if device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            events.append((device, event))

    def wait() -> None:
        for device, event in events:
            torch.cuda.current_stream(device).wait_event(event)

    return values, wait if events else None


def _own(value: Any, torch: Any) -> Any:
    """What lies on a GPU as a tensor: who exports it sees to it that it is ready for this thread's
    stream."""
    if isinstance(value, torch.Tensor) or gpu_of(value) is None:
        return value
    return torch.utils.dlpack.from_dlpack(value)
