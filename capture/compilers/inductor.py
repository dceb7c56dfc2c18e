"""AOTInductor packages: each segment becomes a shared library that runs without Python.

Weights, inputs, constants and the buffers that results are written to are all arguments, so a package
holds no data, serves every branch of its shape, and never has to be made again when weights change.
Tables have a dynamic number of rows. Compiling runs in worker processes, one per core: the time goes into
the C++ compiler, and a worker that dies takes nothing along.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recreplay.capture.segments import SegmentCode, TensorType
from recreplay.runtime.errors import CompilerError
from recreplay.runtime.manifest import Package

_STAND_IN_ROWS = 64  # rows of the table that a segment is compiled with; the real number is dynamic


class InductorCompiler:
    name = "inductor"

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def compile(
        self,
        codes: Mapping[str, SegmentCode],
        folder: Path,
        device: str,
        progress: Callable[[str], None],
    ) -> dict[str, Package]:
        (folder / "segments").mkdir(parents=True, exist_ok=True)
        waiting = list(codes)
        workers: dict[str, subprocess.Popen[str]] = {}
        with tempfile.TemporaryDirectory(prefix="recreplay-compile-") as scratch:
            try:
                limit = min(len(waiting), os.cpu_count() or 1)
                queues = [waiting[i::limit] for i in range(limit)] if limit else []
                for number, keys in enumerate(queues):
                    job = Path(scratch) / f"job{number}.json"
                    job.write_text(
                        json.dumps(
                            {
                                "device": device,
                                "threads": self._threads,
                                "codes": {k: codes[k].to_json() for k in keys},
                            }
                        )
                    )
                    workers[str(number)] = subprocess.Popen(
                        [sys.executable, "-m", __name__, str(job), str(folder / "segments")],
                        stdout=subprocess.PIPE,
                        stderr=(Path(scratch) / f"job{number}.log").open("w"),
                        text=True,
                    )
                done = 0
                for number_text, worker in workers.items():
                    assert worker.stdout is not None
                    for line in worker.stdout:
                        if line.startswith("compiled "):
                            done += 1
                            progress(f"compiled {done} of {len(codes)} segments")
                    if worker.wait() != 0:
                        log = (Path(scratch) / f"job{number_text}.log").read_text()
                        raise CompilerError(
                            f"AOTInductor failed on a segment (exit code {worker.returncode}); "
                            "`recreplay doctor` says what it needs, `--compiler eager` does without "
                            f"it. The compiler's last words:\n{_tail(log)}"
                        )
            finally:
                for worker in workers.values():
                    if worker.poll() is None:
                        worker.kill()
                    worker.wait()
                    if worker.stdout is not None:
                        worker.stdout.close()
        return {key: Package("inductor", f"segments/{key}") for key in codes}


def _tail(log: str, lines: int = 12) -> str:
    return "\n".join(log.strip().splitlines()[-lines:])


def build_module(code: SegmentCode, device: str) -> tuple[Any, tuple[Any, ...], Any]:
    """The segment as a graph module that writes its outputs, example arguments, and dynamic shapes."""
    import torch
    from torch import fx

    from recreplay.runtime.aten import decode, resolve

    target = torch.device(device)
    graph = fx.Graph()
    values: dict[str, fx.Node] = {}
    examples = []
    shapes: list[Any] = []
    for i, kind in enumerate(code.inputs):
        values[f"i{i}"] = graph.placeholder(f"i{i}")
        table = i in code.tables
        examples.append(_example(kind, target, _STAND_IN_ROWS if table else None))
        shapes.append({0: torch.export.Dim(f"rows{i}", min=1)} if table else None)
    buffers = []
    for i, kind in enumerate(code.outputs):
        buffers.append(graph.placeholder(f"out{i}"))
        examples.append(_example(kind, target, None))
        shapes.append(None)

    def argument(arg: Any) -> Any:
        if isinstance(arg, dict) and "value" in arg:
            return values[arg["value"]]
        if isinstance(arg, list):
            return [argument(a) for a in arg]
        return decode(arg, target)

    for op in code.operators:
        values[op.name] = graph.call_function(
            resolve(op.target),
            tuple(argument(a) for a in op.args),
            {k: argument(v) for k, v in op.kwargs.items()},
        )
    for buffer, result in zip(buffers, code.results, strict=True):
        graph.call_function(torch.ops.aten.copy_.default, (buffer, values[result]))
    graph.output(())
    return fx.GraphModule(torch.nn.Module(), graph), tuple(examples), tuple(shapes)


def _example(kind: TensorType, device: Any, rows: int | None) -> Any:
    import torch

    shape = kind.shape if rows is None else (rows, *kind.shape[1:])
    # Zeros are valid ids for any table, should the compiler run the code to choose a kernel.
    return torch.zeros(shape, dtype=getattr(torch, kind.dtype), device=device)


def _compile_one(code: SegmentCode, device: str, threads: int, target: Path) -> None:
    import torch
    import torch._inductor

    module, examples, shapes = build_module(code, device)
    with torch.no_grad():
        exported = torch.export.export(module, examples, dynamic_shapes=shapes)
    with tempfile.TemporaryDirectory(prefix="recreplay-compile-") as scratch:
        package = torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(Path(scratch) / "model.pt2"),
            inductor_configs={"cpp.threads": threads},
        )
        unpacked = Path(scratch) / "unpacked"
        zipfile.ZipFile(package).extractall(unpacked)
        inside = next(unpacked.iterdir())  # a package is one folder, named like the file
        for source in inside.rglob("*.cpp"):
            source.unlink()  # only what the loader reads goes into the artifact
        shutil.copytree(inside, target)


def _work(job_file: str, folder: str) -> None:
    job = json.loads(Path(job_file).read_text())
    for key, data in job["codes"].items():
        _compile_one(SegmentCode.from_json(data), job["device"], job["threads"], Path(folder) / key)
        print(f"compiled {key}", flush=True)


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2])
