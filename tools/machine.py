"""Facts about this machine that decide what RecReplay can do on it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from recreplay.runtime.processor import processor

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ROOM = 2_000_000_000  # bytes; compiling and the demo stay far below


@dataclass(frozen=True)
class Fact:
    """One thing looked at. `hint` says what follows from it, where something does."""

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    hint: str = ""


def gather() -> list[Fact]:
    """Look at everything; compiles nothing, and starts no work on a GPU."""
    import torch

    from recreplay.capture.compilers.toolchain import usable_cores

    capability = torch.backends.cpu.get_cpu_capability()
    return [
        Fact("python", "ok", platform.python_version()),
        Fact("torch", "ok", torch.__version__),
        Fact("cpu", "ok", f"{cpu_model()}, {capability}, {usable_cores()} cores"),
        _huge_pages(),
        _cxx(),
        *_cuda(),
        _package("triton", "only kernels of our own need it"),
        _package("cuda-bindings", "only CUDA graphs need it", "cuda.bindings"),
        _package("onnx", "only models in ONNX files and `recreplay export` need it: extra [onnx]"),
        _package("torch_tensorrt", "only --compiler tensorrt needs it: extra [tensorrt]"),
        _temp_folder(),
    ]


def choices() -> dict[str, dict[str, Any]]:
    """What capture would choose for each device when it is told nothing."""
    import torch

    from recreplay.capture import DEFAULT_STRATEGY
    from recreplay.capture.compilers.toolchain import inductor_problem

    chosen: dict[str, dict[str, Any]] = {}
    for device, strategy in DEFAULT_STRATEGY.items():
        usable = device == "cpu" or torch.cuda.is_available()
        problem = inductor_problem(device) if usable else "torch finds no CUDA device"
        chosen[device] = {
            "usable": usable,
            "compiler": None if not usable else "eager" if problem else "inductor",
            "strategy": strategy if usable else None,
            "problem": problem,
        }
    return chosen


def try_compiling() -> Fact:
    """Capture a tiny model with the inductor compiler, which runs the whole tool chain once."""
    from recreplay.capture import capture
    from recreplay.models import dlrm
    from recreplay.runtime.errors import RecReplayError
    from recreplay.tools.files import temporary_folder

    model = dlrm(tables=2, rows=16, lookups=2, dim=8, dense=4, bottom=(8, 8), top=(8, 1))
    begun = time.perf_counter()
    with temporary_folder() as folder:
        try:
            capture(model, out=folder / "tiny.rr", buckets=[2], compiler="inductor")
        except RecReplayError as error:
            return Fact("compile check", "problem", str(error), "use --compiler eager")
    seconds = time.perf_counter() - begun
    return Fact("compile check", "ok", f"a tiny model was compiled and verified in {seconds:.0f} s")


def cpu_model() -> str:
    """What the processor calls itself."""
    return processor() or platform.machine()


def _huge_pages() -> Fact:
    try:
        text = _HUGE_PAGES.read_text()
    except OSError:
        return Fact("huge pages", "note", "unknown", "this system does not say")
    state = text.partition("[")[2].partition("]")[0]
    if state == "never":
        return Fact(
            "huge pages", "note", state, f"lookups in large tables are slower; see {_HUGE_PAGES}"
        )
    return Fact("huge pages", "ok", state, "large tables use them")


def _cxx() -> Fact:
    from recreplay.capture.compilers.toolchain import cxx_compiler

    found = cxx_compiler()
    if found is None:
        return Fact(
            "C++ compiler",
            "problem",
            "none",
            "segments run with the eager compiler; install g++, or set CXX",
        )
    return Fact("C++ compiler", "ok", found)


def _cuda() -> list[Fact]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            "this torch is built without CUDA"
            if built is None
            else f"torch is built for CUDA {built}"
        )
        return [Fact("CUDA device", "note", f"none; {why}", "artifacts for the CPU only")]
    from recreplay.capture.compilers.toolchain import inductor_problem

    facts = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        facts.append(
            Fact(
                f"CUDA device {index}",
                "ok",
                f"{properties.name}, sm_{properties.major}{properties.minor}, "
                f"{properties.multi_processor_count} SMs, "
                f"{properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}",
            )
        )
    problem = inductor_problem("cuda")
    if problem is None:
        facts.append(Fact("CUDA headers", "ok", "found"))
    else:
        facts.append(Fact("CUDA headers", "problem", problem, "CUDA segments run eager"))
    return facts


def _package(name: str, without: str, module: str | None = None) -> Fact:
    try:
        present = importlib.util.find_spec(module or name) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is not there
        present = False
    if not present:
        return Fact(name, "note", "not installed", without)
    try:
        return Fact(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Fact(name, "ok", "installed")


def _temp_folder() -> Fact:
    folder = Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile():
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Fact("temporary folder", "problem", f"{folder}: {error}", "set TMPDIR")
    if free < _ROOM:
        return Fact(
            "temporary folder", "note", f"{folder}, {free / 1e9:.1f} GB free", "little room"
        )
    return Fact("temporary folder", "ok", f"{folder}, {free / 1e9:.0f} GB free, {sys.platform}")
