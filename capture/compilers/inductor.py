"""AOTInductor packages: each segment becomes a shared library that runs without Python.

Weights, inputs, constants and the buffers that results are written to are all arguments, so a
package holds no data, serves every branch of its shape, and never has to be made again when
weights change. Compiling runs in worker processes, one per core: the time goes into the C++
compiler, and a worker that dies takes nothing along.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from recreplay.capture.compilers.compile_workers import compile_in_processes
from recreplay.capture.compilers.package_cache import PackageCache
from recreplay.capture.compilers.toolchain import compile_jobs, cuda_link_environment
from recreplay.capture.generalise import DynamicCode
from recreplay.capture.sharing import Code
from recreplay.runtime.devices import open_device
from recreplay.runtime.manifest import Package
from recreplay.runtime.processor import NATIVE
from recreplay.runtime.scratch import drop_scratch, make_scratch

AUTOTUNED = "inductor-max-autotune"
# Inductor's variables, for processes that compile for CUDA. Whether vectors of the CPU can be used
# torch 2.11 finds out by a process that imports torch, for each kind of them, in each process that
# compiles, one after the other; code for a GPU has none. And it begins with as many processes for
# kernels as there are cores, in each of ours, of which there are as many.
_VECTORS, _THREADS = "TORCHINDUCTOR_VEC_ISA_OK", "TORCHINDUCTOR_COMPILE_THREADS"


def autotune_problem(device: str) -> str | None:
    """Why inductor cannot choose kernels of matrix products by measuring them, or None."""
    if device.startswith("cuda"):
        return None
    return (
        "it measures kernels for CUDA; on a CPU inductor's own products want weights that are "
        "compiled in, and packages hold none. Use 'inductor', whose layers pack_linears runs"
    )


class InductorCompiler:
    """With `autotune`, matrix products run by the kernel that was fastest here for their sizes:
    a library's or one of inductor's templates, with what surrounds them fused into it."""

    def __init__(
        self, threads: int, tf32: bool = False, autotune: bool = False, processor: str = NATIVE
    ) -> None:
        self.name = AUTOTUNED if autotune else "inductor"
        # What is chosen for its sizes is chosen for one bucket.
        self.dynamic_batch = not autotune
        self._tf32, self._autotune = tf32, autotune
        self._settings = {
            "cpp.threads": threads,
            "max_autotune": autotune,
        }
        self._processor = processor

    def compile(
        self,
        codes: Mapping[str, Code],
        folder: Path,
        device: str,
        progress: Callable[[str], None],
    ) -> dict[str, Package]:
        target = folder / "segments"
        target.mkdir(parents=True, exist_ok=True)
        described = {key: _to_json(code) for key, code in codes.items()}
        settings = {
            "device": device,
            "tf32": self._tf32,
            "processor": self._processor,
            **self._settings,
        }
        cache = PackageCache(_fingerprint(device), settings)
        # Largest first, dealt out in turn, so that no core ends up with all the long ones.
        waiting = [
            key
            for key in sorted(codes, key=lambda k: -len(json.dumps(described[k])))
            if not cache.take(described[key], target / key)
        ]
        if remembered := len(codes) - len(waiting):
            progress(f"{remembered} of {len(codes)} segments were compiled before")
        apart = self._compile({key: described[key] for key in waiting}, target, device, progress)
        for key in waiting:
            if key not in apart:
                cache.keep(described[key], target / key)
        return {key: Package("inductor", f"segments/{key}") for key in codes if key not in apart}

    def _compile(
        self,
        codes: Mapping[str, object],
        target: Path,
        device: str,
        progress: Callable[[str], None],
    ) -> set[str]:
        """Compile them in this order, each into a folder of its name below `target`. Returns the
        keys of those that cannot be compiled for several buckets at once."""
        if not codes:
            return set()
        # One at a time where kernels are measured, so that none disturbs another.
        most = 1 if self._autotune else compile_jobs()
        waiting = list(codes)
        jobs = [
            {
                "device": device,
                "settings": self._settings,
                "tf32": self._tf32,
                "processor": self._processor,
                "codes": {k: codes[k] for k in waiting[number::most]},
                "target": str(target.absolute()),
            }
            for number in range(min(len(waiting), most))
        ]
        if device == "cpu":
            return compile_in_processes(jobs, dict(os.environ), True, progress, len(codes))
        scratch = make_scratch()
        try:
            environment = cuda_link_environment(scratch / "driver")
            environment[_VECTORS] = "0"
            share, asked = max(1, compile_jobs() // len(jobs)), environment.get(_THREADS, "")
            environment[_THREADS] = str(min(share, int(asked)) if asked.isdecimal() else share)
            return compile_in_processes(jobs, environment, False, progress, len(codes))
        finally:
            drop_scratch(scratch)


def _fingerprint(device: str) -> dict[str, str]:
    opened = open_device(device)
    try:
        return opened.fingerprint()
    finally:
        opened.close()


def _to_json(code: Code) -> dict[str, object]:
    kind = "dynamic" if isinstance(code, DynamicCode) else "static"
    return {kind: code.to_json()}
