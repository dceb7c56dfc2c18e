"""One CUDA graph on one stream, as torch records it: `make_graphed_callables`, a graph a size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from recreplay.tools.bench.peers.base import Array, Arrays, Call, Subject
from recreplay.tools.bench.peers.torch_call import nesting, to_arrays

NOT_CUDA = "records CUDA graphs or uses CUDA streams, which the CPU does not have"


class CudaGraph:
    name = "cuda_graph"
    about = (
        "torch.cuda.make_graphed_callables, one stream, one graph a batch size; inputs copied into "
        "the graph's own tensors, results copied back"
    )
    records_graphs = True

    def absent(self, device: str) -> str | None:
        return None if device.startswith("cuda") else NOT_CUDA

    def load(self, subject: Subject) -> CudaGraphModel:
        return CudaGraphModel(subject)


class _ByPosition(torch.nn.Module):
    """The model with its inputs as positional tensors, which is what torch can record."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self._model = subject.module
        self._names = subject.inputs
        self._args, self._kwargs = nesting(subject)

    def forward(self, *tensors: Tensor) -> Any:
        named = dict(zip(self._names, tensors, strict=True))
        return self._model(*self._args(named), **self._kwargs(named))


class CudaGraphModel:
    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def prepare(self, example: Mapping[str, Array]) -> Call:
        device, names = torch.device(self._subject.device), self._subject.inputs
        static = {name: torch.from_numpy(example[name]).to(device) for name in names}
        samples = tuple(static.values())
        # A module of its own for each size: torch replaces the `forward` of what it records.
        model = _ByPosition(self._subject).eval()
        with torch.no_grad():  # with gradients on, torch would record a backward pass too
            graphed = torch.cuda.make_graphed_callables(model, samples)

        def call(request: Mapping[str, Array]) -> Arrays:
            with torch.no_grad():
                for name, tensor in static.items():
                    tensor.copy_(torch.from_numpy(request[name]), non_blocking=True)
                return to_arrays(graphed(*samples))

        return call

    def close(self) -> None:
        pass
