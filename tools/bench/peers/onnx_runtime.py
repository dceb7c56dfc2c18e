"""ONNX Runtime on the model as torch's own exporter writes it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recreplay.tools.bench.peers.base import Array, Arrays, Call, Subject


class OnnxRuntime:
    """`bags` says how `embedding_bag` is exported: torch writes it as a loop over bags; "gather"
    exports the same model with bags written as a lookup and a sum, as one would do by hand."""

    records_graphs = False

    def __init__(self, name: str, bags: str) -> None:
        self.name = name
        self._gather = bags == "gather"
        form = "bags as Gather and ReduceSum" if self._gather else "bags as exported"
        self.about = (
            f"torch.onnx.export(dynamo=True), {form}; one thread, all optimisations; "
            "session.run from arrays to arrays"
        )

    def absent(self, device: str) -> str | None:
        missing = [
            name
            for name in ("onnx", "onnxscript", "onnxruntime")
            if importlib.util.find_spec(name) is None
        ]
        if missing:
            return f"not installed: {', '.join(missing)}"
        import onnxruntime

        found = onnxruntime.get_available_providers()
        if _provider(device) not in found:
            return f"this onnxruntime has no {_provider(device)}, only {', '.join(found)}"
        return None

    def load(self, subject: Subject) -> OnnxSession:
        return OnnxSession(subject, self._gather)


class OnnxSession:
    def __init__(self, subject: Subject, gather: bool) -> None:
        import onnxruntime

        path = subject.folder / f"onnx_{'gather' if gather else 'bags'}" / "model.onnx"
        path.parent.mkdir()
        with _bags_as_gathers() if gather else contextlib.nullcontext():
            _export(subject, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            path, options, providers=[_provider(subject.device)]
        )
        # The exporter may name results otherwise; their order is the model's.
        self._named = dict(
            zip([i.name for i in self._session.get_inputs()], subject.inputs, strict=True)
        )
        self._outputs = subject.outputs

    def prepare(self, example: Mapping[str, Array]) -> Call:
        run, outputs = self._session.run, self._outputs
        if all(name == ours for name, ours in self._named.items()):
            return lambda request: dict(zip(outputs, run(None, request), strict=True))
        named = self._named

        def call(request: Mapping[str, Array]) -> Arrays:
            feed = {name: request[ours] for name, ours in named.items()}
            return dict(zip(outputs, run(None, feed), strict=True))

        return call

    def close(self) -> None:
        del self._session


def _provider(device: str) -> str:
    return "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"


def _export(subject: Subject, path: Path) -> None:
    """Write the model as ONNX with weights beside it. The exporter's talk is kept to itself."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            program = torch.onnx.export(subject.ingest().exported, dynamo=True, verbose=False)
            assert program is not None
            program.save(path, external_data=True)
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _bags_as_gathers() -> Iterator[None]:
    """`embedding_bag` of a matrix of ids as a lookup and a sum, while a model is exported."""
    original: Callable[..., Any] = torch.nn.functional.embedding_bag

    def bag(ids: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        if ids.ndim == 2 and not args and set(kwargs) <= {"mode"} and kwargs.get("mode") == "sum":
            return torch.nn.functional.embedding(ids, weight).sum(1)
        return original(ids, weight, *args, **kwargs)

    functional: Any = torch.nn.functional
    functional.embedding_bag = bag
    try:
        yield
    finally:
        functional.embedding_bag = original
