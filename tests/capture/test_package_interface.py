"""Packages are linked to one interface, or compiled whole where it cannot be by itself."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._inductor import codecache

from recreplay.capture import capture
from recreplay.capture.cache_folder import cache_folder
from recreplay.capture.compilers import package_interface
from recreplay.capture.compilers.package_interface import compile_interface_once
from recreplay.runtime import Runtime


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * 3 - 1)


def kept() -> list[zipfile.ZipFile]:
    """The interfaces that captures of this run of tests have kept."""
    found = map(zipfile.ZipFile, cache_folder("packages").iterdir())
    return [package for package in found if "interface.o" in package.namelist()]


@pytest.mark.inductor
def test_the_interface_is_kept_for_later_packages(tmp_path: Path) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    capture(
        Scaled().eval(),
        out=tmp_path / "m.rr",
        example_inputs={"x": x},
        buckets=[4],
        compiler="inductor",
    )
    (source,) = [name for name in kept()[0].namelist() if name.endswith(".cpp")]
    assert b"AOTInductorModelContainerRun" in kept()[0].read(source)
    with Runtime.load(tmp_path / "m.rr") as runtime:
        np.testing.assert_array_equal(runtime.run({"x": x})["output"], Scaled()(x).numpy())


@pytest.mark.inductor
@pytest.mark.parametrize("ending", ["", "\n#error no\n"])
def test_where_it_does_not_compile_packages_are_compiled_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    from torch._inductor.cpp_builder import CppTorchDeviceOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(codecache, "CppBuilder", codecache.CppBuilder)  # put back afterwards
    monkeypatch.setattr(package_interface, "_DEFINED", package_interface._DEFINED + ending)
    compile_interface_once(lambda source: source, tmp_path)
    options = CppTorchDeviceOptions(
        vec_isa=pick_vec_isa(), device_type="cpu", aot_mode=True, compile_only=True
    )
    interface = Path(torch._inductor.__file__).parent / "codegen/aoti_runtime/interface.cpp"
    source = tmp_path / "m.wrapper.cpp"
    includes = "#include <torch/csrc/inductor/aoti_include/cpu.h>\n"
    source.write_text(f"{includes}{interface.read_text()}\nint model;\n")
    written = source.read_bytes()

    def command(sources: str | list[str], options: Any) -> str:
        return codecache.CppBuilder("m.wrapper", sources, options, str(tmp_path)).get_command_line()

    compiled = command(str(source), options)
    linked = command(
        [str(tmp_path / "m.wrapper.o")],
        CppTorchDeviceOptions(vec_isa=pick_vec_isa(), device_type="cpu", aot_mode=True),
    )
    assert (str(source) in compiled) == bool(ending)
    assert ("interface.o" in linked) == (not ending)
    assert source.read_bytes() == written  # which inductor looks for again
