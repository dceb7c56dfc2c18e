"""What a request costs besides its latency: the time of cores, and calls of CUDA."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class RequestCost:
    """`cpu_us`: time of all threads of this process, in the mean of many requests.

    `calls`: calls of CUDA's runtime and driver in one request, by name; none on a CPU.
    """

    cpu_us: float
    calls: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def request_cost(call: Callable[[], object], runs: int = 50) -> RequestCost:
    """Of `call`, which answers one request; it has been called before."""
    begun = time.process_time_ns()
    for _ in range(runs):
        call()
    spent = time.process_time_ns() - begun
    return RequestCost(round(spent / 1e3 / runs, 3), _calls(call))


def _calls(call: Callable[[], object]) -> dict[str, int]:
    kinds = torch.profiler.ProfilerActivity
    watched = [kinds.CPU, *([kinds.CUDA] if torch.cuda.is_available() else [])]
    with torch.profiler.profile(activities=watched) as seen:
        call()
    # Torch's own operators are named with their namespace, as aten::cumsum is.
    names = Counter(event.name for event in seen.events() if event.name.startswith("cu"))
    return dict(sorted(names.items()))
