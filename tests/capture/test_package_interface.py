"""Packages are linked to one interface, or compiled whole where it cannot be by itself."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._inductor import codecache

from recreplay.capture import capture
from recreplay.capture.compilers import package_interface
from recreplay.capture.compilers.package_interface import compile_interface_once
from recreplay.runtime import Runtime


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * 3 - 1)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.inductor
def test_the_interface_is_kept_for_later_packages(tmp_path: Path, cache_home: Path) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    capture(
        Scaled().eval(),
        out=tmp_path / "m.rr",
        example_inputs={"x": x},
        buckets=[4],
        compiler="inductor",
    )
    kept = [zipfile.ZipFile(path) for path in (cache_home / "recreplay" / "packages").iterdir()]
    interfaces = [found for found in kept if "interface.o" in found.namelist()]
    assert len(interfaces) == 1
    assert len(kept) == 2
    source = next(f for f in interfaces[0].namelist() if f.endswith(".cpp"))
    assert b"AOTInductorModelContainerRun" in interfaces[0].read(source)
    with Runtime.load(tmp_path / "m.rr") as runtime:
        np.testing.assert_array_equal(runtime.run({"x": x})["output"], Scaled()(x).numpy())


@pytest.mark.inductor
def test_otherwise_packages_are_compiled_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecache, "CppBuilder", codecache.CppBuilder)  # put back afterwards
    monkeypatch.setattr(package_interface, "_DEFINED", "\n#error no\n")
    compile_interface_once(lambda source: source, tmp_path)
    x = torch.ones(2, 3)
    exported = torch.export.export(Scaled(), (x,))
    made = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "m.pt2"))
    torch.testing.assert_close(torch._inductor.aoti_load_package(made)(x), Scaled()(x))
    assert not list(tmp_path.rglob("interface.o"))
