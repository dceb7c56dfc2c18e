"""Packages, and parts that many are linked to, are compiled once."""

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
from recreplay.capture.compilers import package_parts
from recreplay.capture.compilers.package_parts import PackageParts
from recreplay.runtime import Runtime


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * 3 - 1)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x)
        return scores


def kept(name: str) -> list[bytes]:
    """Sources of the parts with such a name that captures of this run of tests have kept."""
    found = map(zipfile.ZipFile, cache_folder("packages").iterdir())
    parts = [package for package in found if "part.o" in package.namelist()]
    sources = [package.read("part.cpp") for package in parts]
    return [source for source in sources if name.encode() in source]


@pytest.mark.inductor
@pytest.mark.parametrize(
    ("model", "columns", "part"),
    [(Scaled, 3, "AOTInductorModelContainerRun"), (Layer, 64, "packed_linear.cpp")],
)
def test_parts_are_kept_for_later_packages(
    tmp_path: Path, model: type[nn.Module], columns: int, part: str
) -> None:
    x = torch.randn(4, columns, generator=torch.Generator().manual_seed(1))
    made = model().eval()
    options: dict[str, Any] = {"buckets": [4], "compiler": "inductor"}
    capture(made, out=tmp_path / "m.rr", example_inputs={"x": x}, **options)
    assert kept(part)
    with Runtime.load(tmp_path / "m.rr") as runtime, torch.no_grad():
        answer = runtime.run({"x": x})["output"]
        np.testing.assert_allclose(answer, made(x).numpy(), rtol=1e-5, atol=1e-6)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.layer = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.table(ids)).relu()


@pytest.mark.inductor
def test_a_model_with_new_weights_needs_no_compiling(tmp_path: Path) -> None:
    ids = torch.tensor([0, 19, 7])
    said: list[list[str]] = []
    for day in range(2):
        torch.manual_seed(day)
        model, messages = Tower().eval(), list[str]()
        capture(
            model,
            {"ids": ids},
            out=tmp_path / f"{day}.rr",
            buckets=[3],
            compiler="inductor",
            progress=messages.append,
        )
        said.append(messages)
        with Runtime.load(tmp_path / f"{day}.rr") as runtime, torch.inference_mode():
            answer = runtime.run({"ids": ids})["output"]
            np.testing.assert_allclose(answer, model(ids).numpy(), rtol=1e-5, atol=1e-6)
    assert "1 of 1 segments were compiled before" not in said[0]
    assert "1 of 1 segments were compiled before" in said[1]
    assert not any(message.startswith("compiled ") for message in said[1])


@pytest.mark.inductor
@pytest.mark.parametrize("ending", ["", "\n#error no\n"])
def test_where_the_interface_does_not_compile_packages_are_compiled_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    from torch._inductor.cpp_builder import CppTorchDeviceOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(codecache, "CppBuilder", codecache.CppBuilder)  # put back afterwards
    monkeypatch.setattr(package_parts, "_DEFINED", package_parts._DEFINED + ending)
    parts = PackageParts(lambda source: source, tmp_path)
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

    with parts.calling(['extern "C" int twice(int x) { return 2 * x; }\n']):
        compiled = command(str(source), options)
    linked = command(
        [str(tmp_path / "m.wrapper.o")],
        CppTorchDeviceOptions(vec_isa=pick_vec_isa(), device_type="cpu", aot_mode=True),
    )
    assert (str(source) in compiled) == bool(ending)
    assert linked.count("part.o") == (1 if ending else 2)  # what it calls, and the interface
    assert source.read_bytes() == written  # which inductor looks for again
