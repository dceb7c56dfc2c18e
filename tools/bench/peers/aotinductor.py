"""AOTInductor: the exported model compiled as it is, weights inside, run by its own loader."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from recreplay.capture.compilers.toolchain import cuda_link_environment, inductor_problem
from recreplay.tools.bench.peers.base import Array, Arrays, Call, Subject
from recreplay.tools.bench.peers.torch_call import to_tensors


class AotInductor:
    """`static` compiles one package for each batch size, else one has a dynamic batch."""

    records_graphs = False

    def __init__(self, name: str, *, static: bool) -> None:
        self.name = name
        self._static = static
        batch = "one package a batch size" if static else "one package with a dynamic batch"
        self.about = f"aoti_compile_and_package, {batch}; loader.run on a list of tensors"

    def absent(self, device: str) -> str | None:
        return inductor_problem(device)

    def load(self, subject: Subject) -> StaticPackages | DynamicPackage:
        return StaticPackages(subject) if self._static else DynamicPackage(subject)


class DynamicPackage:
    def __init__(self, subject: Subject) -> None:
        self._call = _run(subject, subject.exported, "dynamic")

    def prepare(self, example: Mapping[str, Array]) -> Call:
        return self._call

    def close(self) -> None:
        pass


class StaticPackages:
    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def prepare(self, example: Mapping[str, Array]) -> Call:
        subject = self._subject
        if subject.jagged:
            raise RuntimeError(
                f"a static package has one number of values, and {subject.jagged[0]} has many"
            )
        rows = len(next(iter(example.values())))
        tensors = list(to_tensors(subject)(example).values())
        with torch.no_grad():
            module = subject.exported.module()
            spec = subject.exported.call_spec.in_spec
            args, kwargs = torch.utils._pytree.tree_unflatten(tensors, spec)
            program = torch.export.export(module, args, kwargs)
        return _run(subject, program, f"static{rows}")

    def close(self) -> None:
        pass


def _run(subject: Subject, program: torch.export.ExportedProgram, name: str) -> Call:
    """Compile for one thread, load, and call without the Python wrapper, which costs 12 µs."""
    with _linking(subject):
        package = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(subject.folder / f"aoti_{name}.pt2"),
            inductor_configs={"cpp.threads": 1},
        )
    loaded = torch._inductor.aoti_load_package(package, run_single_threaded=True)
    run: Callable[[list[Tensor]], list[Tensor]] = cast("Any", loaded.loader).run
    move, names = to_tensors(subject), subject.outputs

    def call(request: Mapping[str, Array]) -> Arrays:
        results = run(list(move(request).values()))
        return {n: r.cpu().numpy() for n, r in zip(names, results, strict=True)}

    with contextlib.suppress(OSError):  # the loader has unpacked it; the tables in it are large
        (subject.folder / f"aoti_{name}.pt2").unlink()
    return call


@contextlib.contextmanager
def _linking(subject: Subject) -> Iterator[None]:
    """What capture's compiling processes are started with, for this process."""
    if subject.device == "cpu":
        yield
        return
    before = os.environ.get("LIBRARY_PATH")
    os.environ.update(cuda_link_environment(subject.folder / "driver"))
    try:
        yield
    finally:
        os.environ.pop("LIBRARY_PATH", None)
        if before is not None:
            os.environ["LIBRARY_PATH"] = before
