"""torch.compile in its modes, one graph for each batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from recreplay.capture.compilers.toolchain import inductor_problem
from recreplay.tools.bench.peers.base import Array, Call, Subject
from recreplay.tools.bench.peers.torch_call import host_call, nesting, to_tensors

_RECOMPILES = 64  # one for each batch size; past the limit dynamo would quietly run eager


class Compiled:
    """`mode` is torch's name of it. Only on CUDA do modes record graphs."""

    def __init__(self, name: str, mode: str, about: str, *, graphs: bool) -> None:
        self.name = name
        self.about = about
        self.records_graphs = graphs
        self._mode = mode

    def absent(self, device: str) -> str | None:
        if self._mode == "reduce-overhead" and not device.startswith("cuda"):
            return "records CUDA graphs; on the CPU it is torch.compile's default"
        return inductor_problem(device)

    def load(self, subject: Subject) -> CompiledModel:
        return CompiledModel(subject, self._mode, self.records_graphs)


class CompiledModel:
    def __init__(self, subject: Subject, mode: str, graphs: bool) -> None:
        torch._dynamo.reset()
        self._subject, self._mode = subject, mode
        self._on_cuda = subject.device.startswith("cuda")
        self._graphs = graphs and self._on_cuda

    def prepare(self, example: Mapping[str, Array]) -> Call:
        function = torch.compile(
            self._subject.module, mode=self._mode, dynamic=False, fullgraph=True
        )
        call = host_call(self._subject, function)
        settings: dict[str, Any] = {"triton.cudagraph_or_error": True} if self._graphs else {}
        if self._mode == "max-autotune" and not self._on_cuda:
            settings["freezing"] = True  # weights that may change are not packed
        with (
            torch._dynamo.config.patch(
                recompile_limit=_RECOMPILES, fail_on_recompile_limit_hit=True
            ),
            torch._inductor.config.patch(settings),
        ):
            self._compile(function, example)
            for _ in range(3 if self._on_cuda else 1):  # a graph is recorded on the second call
                self._begin()
                call(example)
        if not self._graphs:
            return call

        def stepped(request: Mapping[str, Array]) -> dict[str, Array]:
            self._begin()
            return call(request)

        return stepped

    def close(self) -> None:
        torch._dynamo.reset()

    def _compile(self, function: Any, example: Mapping[str, Array]) -> None:
        """Static, but for the numbers of jagged values.

        One function serves all of these if the example has one value, and torch is told not to ask
        whether it is one: of more values it assumes that there are always two or more.
        """
        args, kwargs = nesting(self._subject)
        tensors = to_tensors(self._subject)(_with_one_value(self._subject, example))
        for name in self._subject.jagged:
            torch._dynamo.mark_dynamic(tensors[name], 0)
        self._begin()
        config: Any = torch.fx.experimental._config
        with (
            config.patch(backed_size_oblivious=bool(self._subject.jagged)),
            torch.inference_mode(),
        ):
            function(*args(tensors), **kwargs(tensors))

    def _begin(self) -> None:
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def _with_one_value(subject: Subject, example: Mapping[str, Array]) -> dict[str, Array]:
    """The example, but jagged inputs have one value, of the first row."""
    changed = dict(example)
    for spec in subject.manifest.inputs:
        if spec.kind in ("rows", "index"):
            continue
        given = example[spec.name]
        if spec.kind == "values":
            changed[spec.name] = np.zeros(1, given.dtype)
            continue
        changed[spec.name] = np.zeros_like(given)
        if spec.kind == "lengths":
            changed[spec.name][0] = 1
        else:
            changed[spec.name][1:] = 1
    return changed
