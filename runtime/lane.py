"""A lane: one recorded graph per bucket over buffers of its own. Weights are shared by lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from recreplay.runtime.devices.base import Device, Graph, Launch, Staging
from recreplay.runtime.fill import Check, Filler
from recreplay.runtime.manifest import Bucket, Manifest
from recreplay.runtime.plan import check_plan
from recreplay.runtime.record import issue
from recreplay.runtime.segments import LoadedPackage
from recreplay.runtime.spec import Slot, total_bytes

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Captured:
    filler: Filler
    graph: Graph
    outputs: list[Array]  # host views, full bucket


class Lane:
    """Captures every bucket, largest first, over one set of buffers that all buckets share.

    Buckets of a lane never run at the same time, so they may use the same memory.
    """

    def __init__(
        self,
        manifest: Manifest,
        device: Device,
        packages: Mapping[str, LoadedPackage],
        tensors: Mapping[str, torch.Tensor],
        check: Check,
    ) -> None:
        largest = [total_bytes(b.inputs) for b in manifest.buckets]
        self._in = device.staging(max(largest))
        self._out = device.staging(max(total_bytes(b.outputs) for b in manifest.buckets))
        arena = max(total_bytes(b.buffers) for b in manifest.buckets)
        self._arena = torch.zeros(arena, dtype=torch.uint8, device=device.torch_device)
        self.nbytes = self._in.device.numel() + self._out.device.numel() + arena
        order = [spec.name for spec in manifest.inputs]
        self._captured: dict[int, _Captured] = {}
        for bucket in sorted(manifest.buckets, key=lambda b: b.size, reverse=True):
            launches = self._bind(bucket, packages, tensors)
            check_plan(bucket.plan)
            queue = partial(issue, bucket.plan, launches, self._in, self._out)
            graph = device.record(bucket.plan.streams, queue)
            filler = Filler(bucket, order, manifest.bounds, self._in.host, check)
            outputs = [slot.view(self._out.host) for slot in bucket.outputs]
            self._captured[bucket.size] = _Captured(filler, graph, outputs)

    def run(self, size: int, arrays: Sequence[Array], n: int, into: Sequence[Array]) -> int:
        """Fill bucket `size` with `n` rows, replay, copy the outputs; returns ids clamped."""
        captured = self._captured[size]
        clamped = captured.filler.fill(arrays, n)
        captured.graph.replay()
        for target, output in zip(into, captured.outputs, strict=True):
            target[...] = output[:n]
        return clamped

    def replay(self, size: int) -> None:
        """Replay a bucket on whatever its buffers hold: the segments' own time, for measuring."""
        self._captured[size].graph.replay()

    def host_inputs(self) -> Array:
        """The staging bytes of this lane's requests."""
        return self._in.host

    def close(self) -> None:
        for captured in self._captured.values():
            captured.graph.close()
        self._captured.clear()

    def _bind(
        self,
        bucket: Bucket,
        packages: Mapping[str, LoadedPackage],
        tensors: Mapping[str, torch.Tensor],
    ) -> list[Launch]:
        values = dict(tensors)
        for kind, slots, memory in (
            ("input", bucket.inputs, self._in),
            ("staged", bucket.staged, self._in),
            ("output", bucket.outputs, self._out),
        ):
            for slot in slots:
                values[f"{kind}:{slot.name}"] = _typed(memory, slot)
        for slot in bucket.buffers:
            values[f"buffer:{slot.name}"] = _view(self._arena, slot)
        return [
            packages[s.package].bind([values[n] for n in s.inputs], [values[n] for n in s.outputs])
            for s in bucket.segments
        ]


def _typed(staging: Staging, slot: Slot) -> torch.Tensor:
    return _view(staging.device, slot)


def _view(memory: torch.Tensor, slot: Slot) -> torch.Tensor:
    raw = memory[slot.offset : slot.offset + slot.nbytes]
    return raw.view(getattr(torch, slot.dtype)).view(slot.shape)
