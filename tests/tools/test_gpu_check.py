"""`gpu_check`: the parts of it that say something on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recreplay.capture import capture
from recreplay.tools import gpu_check
from recreplay.tools.bench.compare import Session
from recreplay.tools.target import load_target


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_there_is_nothing_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_check", "--out", str(tmp_path / "out")])
    assert gpu_check.main() == 1
    assert capsys.readouterr().err == "error: no CUDA device here, so there is nothing to check\n"
    assert not list(tmp_path.iterdir())


def test_requests_cost_time_of_cores_and_calls(tmp_path: Path) -> None:
    target = load_target("recreplay.models:ncf", ["rows_scale=0.001"])
    capture(target.model, out=tmp_path / "ncf.rr", buckets=[4], compiler="eager")
    with Session(target, tmp_path / "ncf.rr") as session:
        found = gpu_check._one(session, 4)
    for side in ("eager_cost", "replay_cost"):
        assert 0 < found[side]["cpu_us"] < 1e6
        assert found[side]["calls"] == {}  # of CUDA
    assert found["batch"] == 4


def test_where_there_is_no_sanitizer_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "_path_with_cuda", lambda: str(tmp_path))
    assert gpu_check.sanitize(tmp_path) == {"absent": "compute-sanitizer is not on this machine"}


def test_the_sanitizer_runs_a_capture_for_each_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *racecheck*) exit 99;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_check, "_path_with_cuda", lambda: str(tmp_path))
    found = gpu_check.sanitize(tmp_path)
    assert {check: result["exit_code"] for check, result in found.items()} == {
        "memcheck": 0,
        "racecheck": 99,
    }
    for check, result in found.items():
        assert result["tail"].startswith(f"--tool {check} --error-exitcode 99 ")
        assert "capture recreplay.models:microrec_47" in result["tail"]
        assert "--device cuda" in result["tail"]
