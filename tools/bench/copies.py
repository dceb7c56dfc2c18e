"""Inputs copied by a node of the graph, and inputs copied one by one before it, in turns (CUDA).

The second is what a graph over static input tensors has, as `torch.cuda.make_graphed_callables`
makes it: a copy for each input, queued by the host. Both replay the same graph, whose own copy is
left out for the second, and both fill the same pinned memory, so they differ in the copies alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from recreplay.runtime.artifact import Artifact
from recreplay.runtime.devices.cuda import CudaDevice, CudaStaging
from recreplay.runtime.feeding import tensor_view
from recreplay.runtime.lane import Prepared
from recreplay.runtime.spec import Slot
from recreplay.tools.bench.compare import largest_difference
from recreplay.tools.bench.latency import Latency
from recreplay.tools.view.measured import WARM_UP, Drive, lane_on


@dataclass(frozen=True, slots=True)
class Copies:
    """Replays of one bucket; filling the pinned memory is not in them. `inputs`: how many."""

    inputs: int
    inside_us: Latency
    outside_us: Latency

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _KeepingDevice(CudaDevice):
    """Keeps the staging memory that it made: a lane's inputs, then its outputs."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.made: list[CudaStaging] = []

    def staging(self, nbytes: int) -> CudaStaging:
        self.made.append(super().staging(nbytes))
        return self.made[-1]


def compare_copies(artifact: Artifact, runs: int = 200) -> dict[int, Copies]:
    """Measure every bucket of an artifact for CUDA, `runs` replays each way.

    Raises:
        ParityError: the two ways gave different outputs.
    """
    device = _KeepingDevice(0)
    with lane_on(device, artifact) as lane:
        return {
            bucket.size: _compare(
                device,
                bucket.inputs,
                Drive(artifact, lane, bucket.size),
                lane.prepare_in(bucket.size, bucket.size),
                runs,
            )
            for bucket in artifact.manifest.buckets
        }


def _compare(
    device: _KeepingDevice, inputs: Sequence[Slot], drive: Drive, prepared: Prepared, runs: int
) -> Copies:
    memory = device.made[0]
    pairs = [
        (tensor_view(memory.device, slot), torch.from_numpy(slot.view(memory.host)))
        for slot in inputs
    ]

    def outside() -> float:
        begun = time.perf_counter_ns()
        with device.feeding():
            for there, here in pairs:
                there.copy_(here, non_blocking=True)
        prepared.replay_fed()
        return (time.perf_counter_ns() - begun) / 1e3

    ways = (drive.replay, outside)
    times: tuple[list[int], list[int]] = ([], [])
    for turn in range(-WARM_UP, runs):
        drive.fill()
        outputs = []
        for at in (0, 1) if turn % 2 else (1, 0):
            with device.feeding():
                memory.device.zero_()  # what the other way left
            ways[at]()  # the node of the graph is switched here
            took = ways[at]()
            outputs.append({name: view.copy() for name, view in prepared.outputs})
            if turn >= 0:
                times[at].append(round(took * 1e3))
        largest_difference(outputs[0], outputs[1], "the other way to copy")
    return Copies(len(pairs), Latency.from_ns(times[0]), Latency.from_ns(times[1]))
