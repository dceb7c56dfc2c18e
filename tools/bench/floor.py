"""What this machine can do at best, measured: memory, matrix products, one call, and on CUDA the
link between host and device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from recreplay.capture.dag import Cost

# By device: bytes that are copied, far more than any cache holds, and rows and columns of the
# matrices that are multiplied. On a GPU, 1024 rows are too few tiles for all of its
# multiprocessors, and what a launch takes counts in 256 MB.
_COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
_SIZE = {"cpu": 1024, "cuda": 4096}
_SENT = 1 << 26  # bytes over the link
_TRIES = 9
_CALLS = 2000
_MORE = 32  # operators, to see what one more of them costs


@dataclass(frozen=True, slots=True)
class Floor:
    """Rates of one device, and of one thread on the CPU.

    `bytes_per_us` counts bytes read and bytes written of a copy that no cache holds. A program
    whose data stays in a cache can be faster than its floor says.
    """

    bytes_per_us: float
    flops_per_us: float
    call_us: float  # the shortest launch: one element added on the CPU, an empty graph on CUDA
    operator_us: float  # what one more operator adds to a launch, however small it is
    link_bytes_per_us: float | None = None  # pinned memory to the device; None where it is the host

    def us(self, work: Cost, crossing: int) -> float:
        """The least time of so much work, with so many bytes of inputs and outputs: one call, and
        the slowest of memory, arithmetic and the link."""
        return self.call_us + max(self._parts(work, crossing).values())

    def bound(self, work: Cost, crossing: int) -> str:
        """What most of the floor is: `memory`, `arithmetic`, `link` or `call`."""
        parts = {**self._parts(work, crossing), "call": self.call_us}
        return max(parts, key=parts.__getitem__)

    def _parts(self, work: Cost, crossing: int) -> dict[str, float]:
        link = self.link_bytes_per_us
        return {
            "memory": work.bytes / self.bytes_per_us,
            "arithmetic": work.flops / self.flops_per_us,
            "link": 0.0 if link is None else crossing / link,
        }

    def to_json(self) -> dict[str, Any]:
        return {k: None if v is None else round(v, 3) for k, v in asdict(self).items()}


def measure_floor(device: str) -> Floor:
    """Measure all of them, the best of several tries each; takes a second or two."""
    target = torch.device(device)
    nbytes, size = _COPIED[target.type], _SIZE[target.type]
    source = torch.ones(nbytes, dtype=torch.uint8, device=target)
    copy = torch.zeros_like(source)
    with torch.inference_mode():
        copied = _best(lambda: copy.copy_(source), target)
        multiplied = min(_best(product, target) for product in _products(target, size))
        call = _best_call(target, 1)
        operator = (_best_call(target, 1 + _MORE) - call) / _MORE
        link = _SENT / _best(_sending(target), target) if target.type == "cuda" else None
    return Floor(2 * nbytes / copied, 2 * size**3 / multiplied, call, operator, link)


def _products(device: torch.device, size: int) -> list[Callable[[], object]]:
    """The same product by all that torch has for it: on a processor of AMD with AVX-512, oneDNN
    takes half of MKL's time."""
    a = torch.randn(size, size, device=device)
    product = torch.zeros_like(a)
    found: list[Callable[[], object]] = [lambda: torch.mm(a, a, out=product)]
    if device.type == "cpu" and torch._C._has_mkldnn:
        linear = torch.ops.mkldnn._linear_pointwise
        found.append(lambda: linear(a, a, None, "none", [], ""))
    return found


def _sending(device: torch.device) -> Callable[[], object]:
    pinned = torch.ones(_SENT, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_SENT, dtype=torch.uint8, device=device)
    return lambda: there.copy_(pinned, non_blocking=True)


def _best(call: Callable[[], object], device: torch.device) -> float:
    """Microseconds of the fastest of several calls."""
    found = []
    for _ in range(_TRIES):
        begun = time.perf_counter_ns()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter_ns() - begun)
    return min(found) / 1e3


def _best_call(device: torch.device, operators: int) -> float:
    """Microseconds of the shortest launch of so many operators: the fifth percentile, since the
    clock itself jitters."""
    one = torch.ones(1, device=device)

    def add() -> None:
        for _ in range(operators):
            torch.add(one, one, out=one)

    call: Callable[[], object] = add
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        add()  # its kernel is loaded when it is first called, which a capture is not the place for
        with torch.cuda.graph(graph):
            add()

        def replay() -> None:
            graph.replay()
            torch.cuda.synchronize(device)

        call = replay
    found = []
    for _ in range(_CALLS):
        begun = time.perf_counter_ns()
        call()
        found.append(time.perf_counter_ns() - begun)
    return float(np.percentile(found, 5)) / 1e3
