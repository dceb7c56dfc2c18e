from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from recreplay.models import dlrm
from recreplay.runtime.errors import CaptureError
from recreplay.tools.target import load_target


def test_a_reference_model() -> None:
    target = load_target("recreplay.models:dlrm", ["tables=2", "rows=8"])
    assert isinstance(target.model, torch.nn.Module)
    assert target.arguments == {"tables": 2, "rows": 8}


def test_a_users_file(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = load_target(f"{model_file}:build", ["width=4"])
    assert target.name == "build"
    assert target.model.a.weight.shape == (50, 4)  # type: ignore[union-attr]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "was imported" in printed.err


def test_a_saved_program(tmp_path: Path) -> None:
    model = dlrm(tables=2, rows=8, lookups=2, dim=4, dense=3, bottom=(4,), top=(1,))
    batch = torch.export.Dim("batch", min=1)
    arguments = model.arguments(model.example_inputs(3))
    shapes = {"dense": {0: batch}, "ids": [{0: batch}, {0: batch}]}
    torch.export.save(
        torch.export.export(model, (), arguments, dynamic_shapes=shapes), tmp_path / "m.pt2"
    )
    target = load_target(str(tmp_path / "m.pt2"))
    assert isinstance(target.model, torch.export.ExportedProgram)
    with pytest.raises(CaptureError, match="is a saved program"):
        load_target(str(tmp_path / "m.pt2"), ["rows=3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("absent.onnx", "no file at absent.onnx"),
        ("dlrm_rmc1", "did you mean recreplay.models:dlrm_rmc1"),
        ("model.txt", "names no model; expected recreplay.models:dlrm_rmc1"),
        ("absent.pt2", "no file at absent.pt2"),
        ("absent.py:build", "no file at absent.py"),
        ("no.such.module:build", "cannot import 'no.such.module'"),
        (".:build", "is no module|cannot import"),
        ("recreplay.models:dlrm_rmc9", "has no 'dlrm_rmc9'; it has .*dlrm_rmc1"),
        ("FILE:absent", "has no 'absent'; it has build"),
        ("FILE:value", "is a int; expected a function"),
        ("FILE:nothing", "returned a int; expected a torch.nn.Module"),
        ("FILE:picky", "refused its arguments: rows must be even"),
    ],
)
def test_wrong_targets(text: str, message: str, model_file: Path) -> None:
    with pytest.raises(CaptureError, match=message):
        load_target(text.replace("FILE", str(model_file)))


def test_a_file_that_does_not_import(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import a_module_that_is_not_there\n")
    with pytest.raises(CaptureError, match="a_module_that_is_not_there"):
        load_target(f"{broken}:build")
    broken.write_text("def build(:\n")
    with pytest.raises(CaptureError, match="SyntaxError"):
        load_target(f"{broken}:build")


def test_a_factory_imports_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("WIDTH = 3\n")
    (tmp_path / "lazy.py").write_text(
        "import torch\n"
        "def build():\n"
        "    import beside_it\n"
        "    return torch.nn.Linear(beside_it.WIDTH, 1)\n"
    )
    before = list(sys.path)
    target = load_target(f"{tmp_path / 'lazy.py'}:build")
    assert target.model.in_features == 3  # type: ignore[union-attr]
    assert sys.path == before


@pytest.mark.parametrize("text", ["import sys\nsys.exit()\n", "def build():\n    exit(3)\n"])
def test_a_model_that_ends_the_process_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "script.py").write_text(text)
    code = 3 if "3" in text else None
    with pytest.raises(CaptureError, match=rf"script\.py:build called sys\.exit\({code}\) when it"):
        load_target(f"{tmp_path / 'script.py'}:build")
    if code is None:
        assert "recreplay_target_script" not in sys.modules


def test_what_an_import_raises_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_package.py").write_text("raise ValueError('tables must be even')\n")
    monkeypatch.chdir(tmp_path)
    why = "^cannot import 'odd_package': ValueError: tables must be even$"
    with pytest.raises(CaptureError, match=why) as caught:
        load_target("odd_package:build")
    assert isinstance(caught.value.__cause__, ValueError)
