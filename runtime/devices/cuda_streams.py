"""CUDA streams of our own, lent to one device object at a time and never destroyed.

They come from the driver and not from torch, whose streams are a round-robin pool of 32: another
library's work could land on a stream that is capturing. torch's allocators remember the streams
that a block of memory was used on, and record events there when the block is freed, which may be
long after a runtime was closed: with a destroyed stream that ends the process. So what is given
back waits for the next runtime.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable

import torch

from recreplay.runtime.devices.cuda_bindings import bindings, checked

Kind = tuple[torch.device, int]  # and the priority

_LOCK = threading.Lock()
_IDLE: dict[Kind, list[torch.cuda.Stream]] = defaultdict(list)  # those that nobody uses
# By handle, since CUDA may not be asked any more when a context is broken.
_KINDS: dict[int, Kind] = {}


def take_stream(device: torch.device, urgent: bool) -> torch.cuda.Stream:
    """A non-blocking stream of the current device, `device`; `urgent` ones go first."""
    cudart = bindings()
    least, greatest = checked(cudart.cudaDeviceGetStreamPriorityRange())
    priority = greatest if urgent else least
    kind = device, priority
    with _LOCK:
        if idle := _IDLE[kind]:
            return idle.pop()
    (handle,) = checked(cudart.cudaStreamCreateWithPriority(cudart.cudaStreamNonBlocking, priority))
    stream: torch.cuda.Stream = torch.cuda.ExternalStream(int(handle), device)  # type: ignore[no-untyped-call]
    _KINDS[stream.cuda_stream] = kind
    return stream


def give_back(streams: Iterable[torch.cuda.Stream]) -> None:
    """Streams of `take_stream` on which nothing is queued any more."""
    with _LOCK:
        for stream in streams:
            _IDLE[_KINDS[stream.cuda_stream]].append(stream)
