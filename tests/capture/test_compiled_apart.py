"""Code that cannot be compiled for several buckets at once is compiled for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from recreplay.capture import assembly, capture
from recreplay.capture.compilers.eager import EagerCompiler
from recreplay.capture.compilers.inductor import InductorCompiler
from recreplay.capture.generalise import DynamicCode
from recreplay.capture.sharing import Code
from recreplay.models import ncf
from recreplay.runtime import Runtime
from recreplay.runtime.manifest import Package

# The sum of the first 20 rows: of 8 rows that is another function than of 32.
FIRST_ROWS = {
    "inputs": [["float32", [{"batch": [1, 0]}, 4]]],
    "tables": [],
    "operators": [
        ["some", "aten.slice.Tensor", [{"value": "i0"}, 0, 0, 20], {}],
        ["sum", "aten.sum.dim_IntList", [{"value": "some"}, [0]], {}],
    ],
    "results": ["sum"],
    "outputs": [["float32", [4]]],
}


def test_a_size_that_torch_asks_about_is_said(tmp_path: Path) -> None:
    code = DynamicCode(FIRST_ROWS, 8, 32)
    assert InductorCompiler(1).compile({"rows": code}, tmp_path, "cpu", print) == {}
    assert not list(tmp_path.rglob("*.so"))


class ForOneBucket(EagerCompiler):
    """Would share packages, and can make none that are shared."""

    dynamic_batch = True

    def compile(
        self,
        codes: Mapping[str, Code],
        folder: Path,
        device: str,
        progress: Callable[[str], None],
    ) -> dict[str, Package]:
        static = {k: c for k, c in codes.items() if not isinstance(c, DynamicCode)}
        return super().compile(static, folder, device, progress)


def test_each_bucket_gets_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "get_compiler", lambda *_: ForOneBucket())
    model, said = ncf(rows_scale=0.01), list[str]()
    found = capture(
        model, out=tmp_path / "m.rr", buckets=[1, 4, 16], compiler="eager", progress=said.append
    )
    used = [{s.package for s in bucket.segments} for bucket in found.buckets]
    assert not used[1] & used[2]
    assert "1 of 2 segments: for each bucket by itself" in said
    request = model.example_inputs(11)
    with Runtime.load(tmp_path / "m.rr") as runtime:
        got = runtime.run(request)["output"]
    with torch.no_grad():
        np.testing.assert_allclose(got, model(**request).numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_measured_has_its_own_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(assembly, "get_compiler", lambda *_: ForOneBucket())
    found = capture(
        ncf(rows_scale=0.01),
        out=tmp_path / "m.rr",
        buckets=[1, 4, 16],
        compiler="eager",
        tune="quick",
    )
    assert {c.bucket for c in found.candidates if c.chosen} == {1, 4, 16}
    used = [{s.package for s in bucket.segments} for bucket in found.buckets]
    assert not used[1] & used[2]
