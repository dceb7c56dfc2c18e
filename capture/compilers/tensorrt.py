"""TensorRT engines for dense segments, one for each bucket; everything else goes to inductor.

An engine holds no weights: they are its inputs, as for every other package, so that a refresh in
place reaches it. Written against Torch-TensorRT 2.13 and TensorRT 11, whose networks are strongly
typed: a segment computes in the dtypes that its graph says.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import fx

from recreplay.capture.compilers.inductor import InductorCompiler
from recreplay.capture.dense import PRODUCTS, chosen_segments
from recreplay.capture.generalise import DynamicCode
from recreplay.capture.segments import SegmentCode
from recreplay.capture.sharing import Code
from recreplay.runtime.aten import rebuild, resolve
from recreplay.runtime.errors import CompilerError
from recreplay.runtime.manifest import Package
from recreplay.runtime.tensorrt_engine import ENGINE, VERSIONS

# Name of the compiler -> how products are computed.
PRECISIONS = {"tensorrt": "fp32", "tensorrt-tf32": "tf32", "tensorrt-fp16": "fp16"}


def tensorrt_problem(device: str) -> str | None:
    """Why engines cannot be built here, or None."""
    for package in ("torch_tensorrt", "tensorrt"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install 'recreplay[tensorrt]'"
    if not device.startswith("cuda"):
        return f"engines run on CUDA; the device is {device!r}"
    return None


class TensorRTCompiler:
    dynamic_batch = False  # an engine has static shapes

    def __init__(self, name: str, threads: int, processor: str) -> None:
        self.name = name
        self._precision = PRECISIONS[name]
        self._rest = InductorCompiler(threads, processor=processor)

    def compile(
        self,
        codes: Mapping[str, Code],
        folder: Path,
        device: str,
        progress: Callable[[str], None],
    ) -> dict[str, Package]:
        static = {k: c for k, c in codes.items() if not isinstance(c, DynamicCode)}
        engines, rest = chosen_segments(static)
        packages = {}
        for at, key in enumerate(engines):
            progress(f"building engine {at + 1} of {len(engines)}")
            path = folder / "segments" / key
            path.mkdir(parents=True)
            (path / ENGINE).write_bytes(_build(static[key], device, self._precision))
            (path / VERSIONS).write_text(json.dumps({**versions(), "precision": self._precision}))
            packages[key] = Package("tensorrt", f"segments/{key}")
        if rest:
            packages |= self._rest.compile({k: codes[k] for k in rest}, folder, device, progress)
        return packages


def versions() -> dict[str, str]:
    """What an engine was built with; it loads in the same TensorRT only."""
    return {
        "tensorrt": importlib.metadata.version("tensorrt"),
        "torch_tensorrt": importlib.metadata.version("torch_tensorrt"),
    }


def dense_module(code: SegmentCode, device: torch.device, half: bool) -> fx.GraphModule:
    """A segment as a function of its inputs that returns its outputs.

    With `half`, products are computed in float16 and everything around them as it is written.
    """
    graph = fx.Graph()
    values = {f"i{at}": graph.placeholder(f"i{at}") for at in range(len(code.inputs))}
    cast = torch.ops.aten.to.dtype

    for op in code.operators:
        args = [rebuild(a, values, device) for a in op.args]
        narrow = half and op.target in PRODUCTS
        if narrow:
            args = [
                graph.call_function(cast, (a, torch.float16)) if isinstance(a, fx.Node) else a
                for a in args
            ]
        kwargs = {k: rebuild(v, values, device) for k, v in op.kwargs.items()}
        values[op.name] = graph.call_function(resolve(op.target), tuple(args), kwargs)
        if narrow:
            values[op.name] = graph.call_function(cast, (values[op.name], torch.float32))
    graph.output(tuple(values[name] for name in code.results))
    return fx.GraphModule(torch.nn.Module(), graph)


def _build(code: SegmentCode, device: str, precision: str) -> bytes:
    import torch_tensorrt

    target = torch.device(device)
    module = dense_module(code, target, half=precision == "fp16")
    examples = tuple(
        torch.zeros(t.shape, dtype=getattr(torch, t.dtype), device=target) for t in code.inputs
    )
    try:
        with torch.no_grad():
            program = torch.export.export(module, examples)
        engine: bytes = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            arg_inputs=list(examples),
            device=target,
            disable_tf32=precision != "tf32",
            require_full_compilation=True,
            min_block_size=1,
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CompilerError(
            f"TensorRT failed on a segment of {len(code.operators)} operators: {lines[0]}; "
            "--compiler inductor does without it"
        ) from error
    return engine
