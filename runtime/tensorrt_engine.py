"""A TensorRT engine as a package: loaded as it was built, called on the current stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from recreplay.runtime.errors import (
    ArtifactCorruptError,
    EnvironmentMismatchError,
    ReplayError,
)

ENGINE = "engine.trt"
VERSIONS = "versions.json"


class TensorRTPackage:
    """An engine; each binding has an execution context with its addresses set once.

    `execute_async_v3` only queues work, so it is recorded into a graph like any kernel, once the
    context has run before: the first run of a context may allocate.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        try:
            import tensorrt
        except ImportError as error:
            raise EnvironmentMismatchError(
                f"{folder} is a TensorRT engine, and tensorrt cannot be imported ({error}): "
                "pip install 'recreplay[tensorrt]', or capture the model with another compiler"
            ) from error
        self._folder, self._device = folder, device
        expected = json.loads((folder / VERSIONS).read_text())["tensorrt"]
        if tensorrt.__version__ != expected:
            raise EnvironmentMismatchError(
                f"{folder} was built by TensorRT {expected}, found {tensorrt.__version__}; an "
                "engine loads in the version that built it only: install that, or capture the "
                "model again"
            )
        self._input = tensorrt.TensorIOMode.INPUT
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        with torch.cuda.device(device):
            self._engine: Any = runtime.deserialize_cuda_engine((folder / ENGINE).read_bytes())
        if self._engine is None:
            raise ArtifactCorruptError(f"{folder / ENGINE} is no engine that TensorRT can load")
        self._runtime = runtime  # has to outlive the engine

    def bind(
        self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> Callable[[], object]:
        engine = self._engine
        names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
        reads = [n for n in names if engine.get_tensor_mode(n) == self._input]
        writes = [n for n in names if n not in reads]
        context = engine.create_execution_context()
        for wanted, tensors in ((reads, inputs), (writes, outputs)):
            if len(wanted) != len(tensors):
                raise ArtifactCorruptError(
                    f"{self._folder}: the engine has {len(wanted)} tensors where the plan has "
                    f"{len(tensors)}; capture the model again"
                )
            for name, tensor in zip(wanted, tensors, strict=True):
                shape = tuple(engine.get_tensor_shape(name))
                if shape != tuple(tensor.shape) or not tensor.is_contiguous():
                    raise ArtifactCorruptError(
                        f"{self._folder}: the engine's {name!r} is {shape}, the plan's "
                        f"{tuple(tensor.shape)}; capture the model again"
                    )
                context.set_tensor_address(name, tensor.data_ptr())

        def launch() -> None:
            stream = torch.cuda.current_stream(self._device).cuda_stream
            if not context.execute_async_v3(stream):
                raise ReplayError(f"{self._folder}: TensorRT could not queue the engine")

        return launch

    def close(self) -> None:
        del self._engine
