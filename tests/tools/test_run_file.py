from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

from recreplay.tools.target import load_target

Invoke = Callable[..., Result]
Write = Callable[..., Path]


@pytest.mark.parametrize("rows", [1, 5, 8, 20])
def test_round_trip(
    rows: int,
    captured: tuple[Path, Any],
    model_file: Path,
    request_file: Write,
    tmp_path: Path,
    report: Callable[..., Any],
) -> None:
    source, out = request_file(rows), tmp_path / "out.npz"
    found = report("run", captured[0], "--inputs", source, "--out", out)
    assert found["rows"] == rows
    assert found["stats"]["requests"] == 1
    assert found["run_us"] > 0
    model = load_target(f"{model_file}:build").model
    assert isinstance(model, torch.nn.Module)
    given = {k: torch.from_numpy(v) for k, v in np.load(source).items()}
    with torch.inference_mode():
        want = model(given["dense"], [given["ids_0"], given["ids_1"]])
    scores = np.load(out)
    assert scores.files == ["output"]
    np.testing.assert_allclose(scores["output"], want.numpy(), rtol=1e-4, atol=1e-5)


def test_for_people(
    captured: tuple[Path, Any], request_file: Write, tmp_path: Path, invoke: Invoke
) -> None:
    result = invoke("run", captured[0], "--inputs", request_file(5), "--out", tmp_path / "o.npz")
    assert "1 x bucket 8" in result.stdout
    assert "3 rows of padding" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids_0": np.array([{"a": 1}] * 5, dtype=object)}, "'ids_0' is a pickled Python object"),
        ({"dense": None}, "missing dense"),
        ({"more": np.zeros(5)}, "unknown more"),
        ({"dense": np.zeros((5, 4), np.float32)}, "input 'dense' has shape"),
        ({"dense": np.zeros((5, 3), np.float64)}, "input 'dense' has dtype float64"),
        ({"ids_1": np.full((5, 4), 50)}, "id 50 is out of range"),
    ],
)
def test_wrong_requests(
    changes: dict[str, Any],
    message: str,
    captured: tuple[Path, Any],
    request_file: Write,
    tmp_path: Path,
    invoke: Invoke,
) -> None:
    out = tmp_path / "out.npz"
    result = invoke("run", captured[0], "--inputs", request_file(5, **changes), "--out", out)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stdout == ""
    assert not out.exists()


def test_wrong_files(captured: tuple[Path, Any], tmp_path: Path, invoke: Invoke) -> None:
    def error(source: Path) -> str:
        result = invoke("run", captured[0], "--inputs", source, "--out", tmp_path / "out.npz")
        assert result.exit_code == 1
        return result.stderr

    assert "no file at" in error(tmp_path / "absent.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert "holds one array without a name" in error(tmp_path / "one.npy")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    assert "is not an .npz file" in error(tmp_path / "torn.npz")
    (tmp_path / "text.npz").write_text("not a zip")
    assert "is not an .npz file: numpy did not write it, or" in error(tmp_path / "text.npz")


def test_an_unwritable_place(
    captured: tuple[Path, Any], request_file: Write, tmp_path: Path, invoke: Invoke
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out.npz"
    result = invoke("run", captured[0], "--inputs", request_file(2), "--out", out)
    assert result.exit_code == 1
    assert "cannot write" in result.stderr


def test_clamping_is_counted_and_strict_refuses_it(
    captured: tuple[Path, Any],
    request_file: Write,
    tmp_path: Path,
    invoke: Invoke,
    report: Callable[..., Any],
) -> None:
    source = request_file(8, ids_0=np.full((8, 4), 99))
    command = ("run", captured[0], "--inputs", source, "--out", tmp_path / "out.npz")
    found = report(*command, "--check", "clamp")
    assert found["stats"]["clamped_ids"] == 32
    assert found["notices"] == ["32 ids were out of range and were clamped"]
    (tmp_path / "out.npz").unlink()
    result = invoke(*command, "--check", "clamp", "--strict")
    assert result.exit_code == 1
    assert "--strict: 32 ids were out of range" in result.stderr
    assert not (tmp_path / "out.npz").exists()
    assert "unknown check 'maybe'" in invoke(*command, "--check", "maybe").stderr


def test_strict_takes_a_request_that_fits(
    captured: tuple[Path, Any], request_file: Write, tmp_path: Path, invoke: Invoke
) -> None:
    def code(rows: int) -> int:
        out = tmp_path / "out.npz"
        source = request_file(rows)
        return invoke("run", captured[0], "--inputs", source, "--out", out, "--strict").exit_code

    assert code(8) == 0
    assert code(7) == 1  # padded
    assert code(16) == 1  # split
