"""Graphs without copies: kernels read and write the host's pinned memory themselves (CUDA).

A copy of a few KB is a node of the graph as long as a small kernel, one before the first kernel and
one behind the last. Over the link a read takes longer than from the device's own memory, and ids
that several programs read cross it several times, so this is for small requests if for any. It is
here to be measured; runtimes copy.

What the host writes before a launch is there for the kernels of the graph, and what they write is
there for the host once the stream was waited for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from recreplay.runtime.artifact import Artifact
from recreplay.runtime.devices.cuda import CudaDevice, CudaStaging
from recreplay.runtime.errors import EnvironmentMismatchError
from recreplay.runtime.spec import total_bytes
from recreplay.tools.bench.compare import largest_difference
from recreplay.tools.bench.latency import Latency
from recreplay.tools.view.measured import WARM_UP, Drive, lane_on

_MOST = 1 << 18  # bytes: what takes longer to cross than a copy to be launched crosses once at best


@dataclass(frozen=True, slots=True)
class Mapped:
    """Replays of one bucket; filling the pinned memory is not in them. `crossing_bytes`: of its
    inputs and outputs."""

    crossing_bytes: int
    copied_us: Latency
    mapped_us: Latency

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Lent:
    """Pinned memory as an array of the device. With unified addressing, which every 64-bit Linux
    has, pinned memory has one address on both sides."""

    def __init__(self, pinned: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(pinned.shape),
            "typestr": "|u1",
            "data": (pinned.data_ptr(), False),
            "version": 3,
        }


class MappedStaging(CudaStaging):
    """Bytes on the host alone, and a view of them for the device."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.pinned = torch.zeros(max(nbytes, 1), dtype=torch.uint8, pin_memory=True)
        self.host = self.pinned.numpy()
        self.device = torch.as_tensor(_Lent(self.pinned), device=device)
        if self.device.data_ptr() != self.pinned.data_ptr():
            raise EnvironmentMismatchError(
                f"torch copied pinned memory to {device} where it was to be viewed"
            )

    def upload(self) -> None:
        pass

    def download(self) -> None:
        pass


class MappedDevice(CudaDevice):
    """Records graphs that reach over the link."""

    def staging(self, nbytes: int) -> MappedStaging:
        with self._current():  # whose memory it counts as
            made = MappedStaging(nbytes, self.torch_device)
        self._staged.append(made.pinned)
        return made

    def upload_node(self, graph: torch.cuda.CUDAGraph) -> Any:
        return None


def compare_mapped(artifact: Artifact, runs: int = 200) -> dict[int, Mapped]:
    """Measure the buckets of an artifact for CUDA whose inputs and outputs are few bytes, with
    copies and without, in turns, by lanes of their own.

    Raises:
        ParityError: the two gave different outputs.
    """
    with lane_on(CudaDevice(0), artifact) as copying, lane_on(MappedDevice(0), artifact) as mapped:
        found = {}
        for bucket in artifact.manifest.buckets:
            size = bucket.size
            crossing = total_bytes(bucket.inputs) + total_bytes(bucket.outputs)
            if crossing > _MOST:
                continue
            drives = [Drive(artifact, lane, size) for lane in (copying, mapped)]
            outputs = [lane.prepare_in(size, size).outputs for lane in (copying, mapped)]
            times: tuple[list[int], list[int]] = ([], [])
            for turn in range(-WARM_UP, runs):
                for drive in drives:
                    drive.fill()
                for at in (0, 1) if turn % 2 else (1, 0):
                    took = drives[at].replay()
                    if turn >= 0:
                        times[at].append(round(took * 1e3))
                got, want = (dict(views) for views in reversed(outputs))
                largest_difference(got, want, "a graph that copies")
            found[size] = Mapped(crossing, *map(Latency.from_ns, times))
        return found
