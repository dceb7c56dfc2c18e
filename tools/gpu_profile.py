"""What a GPU ran for a request, kernel by kernel: why a time is what it is.

`recreplay view --measure` says more, which stream and which segment, where torch's profiler tells
the nodes of a graph apart; torch 2.11's does not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_CALLS = 5
Ran = list[tuple[str, float, float]]


def ran_by(call: Callable[[], object]) -> Ran:
    """Names of kernels and copies of one call, each with its begin, from that of the first, and its
    duration in microseconds; empty where the profiler sees none.

    Of several calls the one in the middle. The profiler may slow down all calls of CUDA that this
    process makes afterwards.
    """
    call()
    kinds = torch.profiler.ProfilerActivity
    watched = [kinds.CPU, *([kinds.CUDA] if torch.cuda.is_available() else [])]
    with torch.profiler.profile(activities=watched) as seen:
        for _ in range(_CALLS):
            call()
    events = [event for event in seen.events() if event.device_type.name == "CUDA"]
    events.sort(key=lambda event: event.time_range.start)
    each, rest = divmod(len(events), _CALLS)
    if rest == 0:  # else something else ran as well: all of it
        events = events[_CALLS // 2 * each :][:each]
    first = events[0].time_range.start if events else 0.0
    return [
        (
            event.name[:100],
            round(event.time_range.start - first, 3),
            round(event.time_range.elapsed_us(), 3),
        )
        for event in events
    ]
