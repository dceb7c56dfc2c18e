"""AOTInductor packages: each segment becomes a shared library that runs without Python.

Weights, inputs, constants and the buffers that results are written to are all arguments, so a
package holds no data, serves every branch of its shape, and never has to be made again when
weights change. Compiling runs in worker processes, one per core: the time goes into the C++
compiler, and a worker that dies takes nothing along.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from recreplay.capture.compilers.c_library import build_c_library
from recreplay.capture.compilers.package_cache import PackageCache
from recreplay.capture.compilers.toolchain import cuda_link_environment, usable_cores
from recreplay.capture.generalise import DynamicCode
from recreplay.capture.sharing import Code
from recreplay.runtime.artifact import LAUNCHER
from recreplay.runtime.devices import open_device
from recreplay.runtime.errors import CompilerError
from recreplay.runtime.manifest import Package
from recreplay.runtime.scratch import drop_scratch, make_scratch

AUTOTUNED = "inductor-max-autotune"
_WORKER = "recreplay.capture.compilers.inductor_worker"
_SIGN_OF_LIFE = 5.0  # seconds


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

    def __init__(self, threads: int, tf32: bool = False, autotune: bool = False) -> None:
        self.name = AUTOTUNED if autotune else "inductor"
        # What is chosen for its sizes is chosen for one bucket.
        self.dynamic_batch = not autotune
        self._tf32, self._autotune = tf32, autotune
        self._settings = {
            "cpp.threads": threads,
            "max_autotune": autotune,
        }

    def compile(
        self,
        codes: Mapping[str, Code],
        folder: Path,
        device: str,
        progress: Callable[[str], None],
    ) -> dict[str, Package]:
        target = folder / "segments"
        target.mkdir(parents=True, exist_ok=True)
        if device == "cpu":
            build_c_library("launch.c", folder / LAUNCHER)
        described = {key: _to_json(code) for key, code in codes.items()}
        settings = {"device": device, "tf32": self._tf32, **self._settings}
        cache = PackageCache(_fingerprint(device), settings)
        # Largest first, dealt out in turn, so that no core ends up with all the long ones.
        waiting = [
            key
            for key in sorted(codes, key=lambda k: -len(json.dumps(described[k])))
            if not cache.take(described[key], target / key)
        ]
        if remembered := len(codes) - len(waiting):
            progress(f"{remembered} of {len(codes)} segments were compiled before")
        self._compile({key: described[key] for key in waiting}, target, device, progress)
        for key in waiting:
            cache.keep(described[key], target / key)
        return {key: Package("inductor", f"segments/{key}") for key in codes}

    def _compile(
        self,
        codes: Mapping[str, object],
        target: Path,
        device: str,
        progress: Callable[[str], None],
    ) -> None:
        """Compile them in this order, each into a folder of its name below `target`."""
        # One at a time where kernels are measured, so that none disturbs another.
        cores = 1 if self._autotune else usable_cores()
        waiting = list(codes)
        scratch = make_scratch()
        environment = None if device == "cpu" else cuda_link_environment(scratch / "driver")
        workers: list[_Worker] = []
        try:
            for number in range(min(len(waiting), cores)):
                job = {
                    "device": device,
                    "settings": self._settings,
                    "tf32": self._tf32,
                    "scratch": str(scratch),
                    "codes": {k: codes[k] for k in waiting[number::cores]},
                }
                workers.append(_Worker(scratch / f"job{number}", job, target, environment))
            _wait(workers, len(codes), progress)
        finally:
            for worker in workers:
                worker.stop()
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


def _wait(workers: list[_Worker], total: int, progress: Callable[[str], None]) -> None:
    """Until all have ended; a sign of life every few seconds, since one segment can take a
    minute."""
    begun, done = time.monotonic(), 0
    with selectors.DefaultSelector() as waiting:
        for worker in workers:
            waiting.register(worker.stdout, selectors.EVENT_READ, worker)
        while waiting.get_map():
            ready = waiting.select(timeout=_SIGN_OF_LIFE)
            for key, _ in ready:
                line = key.data.stdout.readline()
                done += line.startswith("compiled ")
                if not line:
                    waiting.unregister(key.fileobj)
                    key.data.check()
            spent = time.monotonic() - begun
            progress(f"compiled {done} of {total} segments after {spent:.0f} s")


class _Worker:
    """One process that compiles its share of the segments and says so line by line."""

    def __init__(
        self,
        base: Path,
        job: dict[str, object],
        target: Path,
        environment: Mapping[str, str] | None,
    ) -> None:
        base.with_suffix(".json").write_text(json.dumps(job))
        self._log = base.with_suffix(".log")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, str(base.with_suffix(".json")), str(target)],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                bufsize=1,
            )
        assert self._process.stdout is not None
        self.stdout = self._process.stdout

    def check(self) -> None:
        """Raise what the process died of, if it did."""
        if self._process.wait() != 0:
            last = "\n".join(self._log.read_text().strip().splitlines()[-12:])
            raise CompilerError(
                f"AOTInductor failed on a segment (exit code {self._process.returncode}); "
                "`recreplay doctor` says what it needs, `--compiler eager` does without it. The "
                f"compiler's last words:\n{last}"
            )

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self.stdout.close()
