"""What `gpu_check` measures in processes of its own, on models that are small."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from recreplay.tools.gpu_jobs import run_jobs

EVERYWHERE = Path(__file__).with_name("everywhere")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not torch.cuda.get_device_name().startswith("Emulated"),
    reason="for the emulated device: tests/emulated/run.py",
)
SMALL = {"arguments": ["rows_scale=0.001"], "batches": [1, 8], "runs": 2, "compiler": "eager"}


def rows(
    module: str, jobs: list[dict[str, Any]], work: Path, patch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    patch.setenv("PYTHONPATH", f"{EVERYWHERE}:{os.environ['PYTHONPATH']}")
    found: list[dict[str, Any]] = []
    run_jobs(f"recreplay.tools.{module}", jobs, work, time.monotonic() + 900, 600, 2, found.append)
    return found


def test_beside_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows by batch; ours in other ways are no peers; peers are asked for few rows alone."""
    job = {**SMALL, "model": "ncf", "peers": ["cuda_graph"], "batches": [1, 128]}
    jobs = [{**job, "end": time.time() + 900}, {**job, "model": "none", "end": 0.0}]
    found = rows("gpu_peers", jobs, tmp_path, monkeypatch)
    (ran,) = (row for row in found if "replays_ran" in row)
    assert {*ran["replays_ran"]} == {"1", "128"}
    small, large = sorted((r for r in found if "contenders" in r), key=lambda row: row["batch"])
    assert [c["name"] for c in small["contenders"]] == [
        *("eager", "cuda_graph", "ours", "ours, single, default")
    ]
    assert "cuda_graph" not in [c["name"] for c in large["contenders"]]
    for row in (small, large):
        assert not row["best_peer"].startswith("ours")
        assert row["absent"] == row["left_out"] == {}
        assert row["floor"]["ours_to_floor"] > 0
        assert row["rates"]["link_bytes_per_us"] > 0
    (other,) = (row for row in found if "name" not in row)
    assert "has no 'none'" in other["error"]


def test_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way = {**SMALL, "model": "dlrm_rmc1", "strategy": "matching", "streams": 2}
    jobs = [{**way, "way": name} for name in ("default", "none", "costs", "unknown")]
    found = rows("gpu_bench", jobs, tmp_path, monkeypatch)
    measured = {row["way"]: row for row in found if "results" in row}
    assert {*measured} == {"default", "none"}
    for row in measured.values():
        assert [r["batch"] for r in row["results"]] == [1, 8]
    (more,) = (row for row in found if "copies" in row)
    assert {*more["copies"]} == {"1", "8"}
    assert more["weights_bytes"] > 0
    (mapped,) = (row["mapped"] for row in found if "mapped" in row)
    assert {*mapped} == {"1", "8"}
    assert {*mapped["1"]} == {"crossing_bytes", "copied_us", "mapped_us"}
    (costs,) = (row for row in found if "costs" in row)
    assert {*costs["costs"]} == {"1", "8"}
    assert {*costs["costs"]["1"]} == {"eager_cost", "replay_cost", "replay_ran"}
    assert [row["error"] for row in found if "error" in row] == ["KeyError: 'unknown'"]


def test_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each kind of measurement, as it ends."""
    job = {"arguments": ["rows_scale=0.001"], "sizes": [1], "compiler": "eager"}
    job |= {"seconds": 1.0}
    found = rows("gpu_serving", [job], tmp_path, monkeypatch)
    assert [{*row} - {*job} for row in found] == [
        {"lanes"},
        {"batching"},
        {"coroutines"},
        {"beside"},
    ]
