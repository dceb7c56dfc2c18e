"""`recreplay capture model.onnx` and `recreplay export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from typer.testing import Result

from recreplay.capture import capture, load_onnx
from recreplay.capture.onnx_export import export_onnx
from recreplay.models import MODELS
from recreplay.runtime.errors import CaptureError, ParityError

ARGUMENTS: dict[str, dict[str, Any]] = {
    "dlrm": {"tables": 4, "rows": 60, "lookups": 3},
    "din": {"rows_scale": 1e-4, "length": 6},
    "streamrec": {"rows_scale": 1e-4, "features": 6, "lookups": 3},  # branches are stacked
}


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of one linear layer."""
    path = tmp_path_factory.mktemp("file") / "linear.onnx"
    batch = {"input": {0: torch.export.Dim("batch")}}
    model = nn.Linear(8, 4).eval()
    torch.onnx.export(
        model, (torch.randn(4, 8),), path, dynamo=True, dynamic_shapes=batch, verbose=False
    )
    return path


def test_a_file_is_measured_with_notices(small_file: Path, invoke: Callable[..., Result]) -> None:
    command = ("bench", small_file, "--compiler", "eager", "--runs", "4", "--buckets", "4")
    result = invoke(*command, "--batches", "3,9")
    assert result.exit_code == 0, result.stderr
    assert "notice: linear: batch 3 is padded to bucket 4" in result.stderr
    assert "notice: linear: batch 9 is replayed in parts of 4" in result.stderr
    result = invoke(*command, "--batches", "3", "--strict")
    assert result.exit_code == 1
    assert "--strict: batch 3 is padded to bucket 4" in result.stderr


def test_a_file_beside_a_suite_is_measured_against_eager(
    small_file: Path, report: Callable[..., Any]
) -> None:
    """As the models of the suite are: of those there is no file for ONNX Runtime."""
    tiny = ("--compiler", "eager", "--runs", "2", "--buckets", "2", "--models", "rm_small")
    tiny = (*tiny, "--arg", "rows_scale=0.0001")
    found = report("bench", small_file, "--suite", "core", *tiny)
    assert found["kind"] == "recreplay-bench"
    assert [result["name"] for result in found["results"]] == ["rm_small"]


@pytest.fixture(scope="module", params=sorted(ARGUMENTS))
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / f"{request.param}.rr"
    model = MODELS[request.param].factory(**ARGUMENTS[request.param])
    capture(model, out=out, buckets=[1, 4], compiler="eager")
    return out


def test_an_artifact_goes_to_onnx_and_back(
    artifact: Path, tmp_path: Path, report: Callable[..., Any], invoke: Callable[..., Result]
) -> None:
    path = tmp_path / "out.onnx"
    said = report("export", artifact, "--onnx", path)
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert said["bytes"] == path.stat().st_size
    assert max(said["max_abs_error"].values()) < 1e-5
    graph = onnx.load(path).graph
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert [i.name for i in graph.input] == [i["name"] for i in manifest["inputs"]]
    assert [o.name for o in graph.output] == [o["name"] for o in manifest["outputs"]]
    assert all(i.type.tensor_type.shape.dim[0].dim_param for i in graph.input)
    assert "Loop" not in {n.op_type for n in graph.node}
    again = invoke("export", artifact, "--onnx", path)
    assert again.exit_code == 1
    assert "exists already" in again.stderr

    summary = report(
        "capture", path, "--out", tmp_path / "back.rr", "--buckets", "4", "--compiler", "eager"
    )
    assert summary["buckets"][0]["parity"]["max_abs"] < 1e-5
    stored = load_file(artifact / "selftest.safetensors")
    names = [i.name for i in graph.input]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {n: stored[f"4/in/{n}"] for n in names})
    np.testing.assert_allclose(got, stored["4/out/output"], rtol=1e-4, atol=1e-5)


def test_jagged_and_user_inputs_go_to_onnx_and_back(
    tmp_path: Path, report: Callable[..., Any], invoke: Callable[..., Result]
) -> None:
    model = MODELS["two_tower"].factory(rows_scale=1e-4, dim=8, tower=(8,), top=(1,))
    names = ("--user-inputs", ",".join(model.user_inputs))
    made = ("--buckets", "4", "--compiler", "eager")
    path = tmp_path / "m.onnx"
    capture(model, out=tmp_path / "m.rr", buckets=[4], compiler="eager")
    said = report("export", tmp_path / "m.rr", "--onnx", path)
    assert max(said["max_abs_error"].values()) < 1e-5
    refused = invoke("capture", path, "--out", tmp_path / "back.rr", *made, *names)
    assert refused.exit_code == 1
    assert "give example inputs with real lengths" in " ".join(refused.stderr.split())
    example = {k: v.numpy() for k, v in model.example_inputs(64).items()}
    np.savez(tmp_path / "example.npz", **example)
    told = ("--inputs", tmp_path / "example.npz", *names)
    for more, capacity in (
        ((), None),
        (
            (
                *("--jagged", "tags:tags_offsets", "--capacity", "tags=5"),
                *("--jagged", "watched:watched_offsets", "--jagged", "searched:searched_offsets"),
            ),
            5,
        ),
    ):
        summary = report(
            "capture", path, "--out", tmp_path / "back.rr", "--overwrite", *made, *told, *more
        )
        assert summary["buckets"][0]["parity"]["max_abs"] < 1e-5
        manifest = json.loads((tmp_path / "back.rr" / "manifest.json").read_text())
        inputs = {i["name"]: i for i in manifest["inputs"]}
        assert {n for n, i in inputs.items() if i["user"]} == set(model.user_inputs)
        assert inputs["tags"]["along"] == "tags_offsets"
        if capacity is not None:
            assert inputs["tags"]["capacity"] == capacity


def test_a_wrong_export_is_not_written(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recreplay.capture import onnx_export

    read = onnx_export.read_program

    def spoiled(opened: Any) -> Any:
        module = read(opened)
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.add_(1.0)
        return module

    monkeypatch.setattr(onnx_export, "read_program", spoiled)
    with pytest.raises(ParityError, match=r"differs by .* under ONNX Runtime .*nothing was wri"):
        export_onnx(artifact, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_an_artifact_of_before_has_no_program(artifact: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from recreplay.capture.program_file import read_program
    from recreplay.runtime.artifact import open_artifact

    opened = open_artifact(artifact)
    files = {k: v for k, v in opened.manifest.files.items() if k != "program.json"}
    older = replace(opened, manifest=replace(opened.manifest, files=files))
    with pytest.raises(CaptureError, match=r"was captured without program\.json"):
        read_program(older)


def test_code_that_holds_tensors_is_exported_with_them(tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * torch.tensor([1.0, 2.0, 3.0])).flatten(1).sum(1)

    capture(
        Model().eval(),
        {"x": torch.rand(2, 3)},
        out=tmp_path / "m.rr",
        buckets=[2],
        compiler="eager",
    )
    export_onnx(tmp_path / "m.rr", tmp_path / "m.onnx")
    x = torch.rand(5, 3)
    got = load_onnx(tmp_path / "m.onnx")([x])["output"]
    torch.testing.assert_close(got, (x * torch.tensor([1.0, 2.0, 3.0])).sum(1))
