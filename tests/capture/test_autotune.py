"""Inductor with kernels of products chosen by measurement: where it may be asked for, and how the
workers are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recreplay.capture import capture
from recreplay.capture.compilers import get_compiler, inductor, toolchain
from recreplay.capture.compilers.inductor import AUTOTUNED
from recreplay.capture.compilers.package_cache import PackageCache
from recreplay.capture.segments import SegmentCode
from recreplay.models import MODELS
from recreplay.runtime.errors import CompilerError


def test_on_a_cpu_it_is_refused(tmp_path: Path) -> None:
    model = MODELS["ncf"].factory(rows_scale=1e-4)
    with pytest.raises(
        CompilerError,
        match=r"^compiler 'inductor-max-autotune' cannot be used: it measures kernels for CUDA; on",
    ):
        capture(model, out=tmp_path / "m.rr", buckets=[2], compiler=AUTOTUNED)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "workers"), [("inductor", 3), (AUTOTUNED, 1)])
def test_kernels_are_measured_one_segment_at_a_time(
    name: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[dict[str, Any]] = []

    def compile_in_processes(given: list[dict[str, Any]], *_: object) -> set[str]:
        jobs.extend(given)
        return set()

    monkeypatch.setattr(inductor, "compile_in_processes", compile_in_processes)
    monkeypatch.setattr(inductor, "_fingerprint", lambda device: {"device": device})
    monkeypatch.setattr(PackageCache, "keep", lambda *_: None)  # nothing was compiled
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(toolchain, "usable_cores", lambda: 3)
    compiler = get_compiler(name, threads=2, tf32=True)
    codes = {f"code{i}": SegmentCode((), (), (), (), ()) for i in range(4)}
    packages = compiler.compile(codes, tmp_path, "cuda", print)
    assert {package.compiler for package in packages.values()} == {"inductor"}
    assert [len(job["codes"]) for job in jobs] == ([2, 1, 1] if workers == 3 else [4])
    for job in jobs:
        assert json.loads(json.dumps(job)) == job
        assert job["settings"]["cpp.threads"] == 2
        assert job["settings"]["max_autotune"] == (name == AUTOTUNED)
        assert job["tf32"]
    assert compiler.dynamic_batch == (name == "inductor")
