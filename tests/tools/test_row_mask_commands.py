"""`--row-mask` on the command line, and what tools do with requests that cannot be cut."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import Result

from recreplay.capture import capture
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.manifest import Candidate
from recreplay.tools.describe import describe
from recreplay.tools.view.live import LiveTraffic
from recreplay.tools.view.measured import measure

Invoke = Callable[..., Result]
Report = Callable[..., Any]
MODEL = """
import torch
from torch import nn


class Shares(nn.Module):
    def __init__(self):
        super().__init__()
        self.item = nn.Embedding(30, 4)

    def forward(self, item, mask):
        score = self.item(item).sum(1)
        return score.masked_fill(~mask, float("-inf")).softmax(0)

    def example_inputs(self, batch):
        return {"item": torch.arange(batch) % 30, "mask": torch.ones(batch, dtype=torch.bool)}


def build():
    return Shares().eval()
"""


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("shares") / "shares.py"
    path.write_text(MODEL)
    return f"{path}:build"


@pytest.fixture(scope="module")
def artifact(shares: str, tmp_path_factory: pytest.TempPathFactory, report: Report) -> Path:
    out = tmp_path_factory.mktemp("shares") / "shares.rr"
    told = ("--row-mask", "mask", "--buckets", "2,8", "--compiler", "eager")
    summary = report("capture", shares, "--out", out, *told)
    assert summary["row_mask"] == "mask"
    assert [i["name"] for i in summary["inputs"]] == ["item"]
    return out


def test_what_is_shown_and_run(artifact: Path, tmp_path: Path, invoke: Invoke) -> None:
    text = invoke("inspect", artifact).stdout
    assert re.search(r"mask +1 +bool\[n\] +row mask, by the runtime itself", text)
    request, scores = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(request, item=np.arange(5))
    assert invoke("run", artifact, "--inputs", request, "--out", scores).exit_code == 0
    assert np.load(scores)["output"].sum() == pytest.approx(1, abs=1e-5)
    np.savez(request, item=np.arange(9))
    result = invoke("run", artifact, "--inputs", request, "--out", scores)
    assert "the request of 9 rows fits in no bucket; the largest has 8 rows" in result.stderr


def test_buckets_that_hold_everything(shares: str, tmp_path: Path, report: Report) -> None:
    trace = tmp_path / "trace.npy"
    np.save(trace, np.repeat([3, 200], [1000, 1]))
    auto = ("--buckets", "auto", "--sizes", trace, "-k", "2", "--compiler", "eager")
    found = report("capture", shares, "--row-mask", "mask", "--out", tmp_path / "m.rr", *auto)
    assert found["bucket_choice"]["best"]["buckets"] == [3, 200]
    assert found["bucket_choice"]["best"]["split"] == 0


def test_eager_has_a_mask_beside_replay(shares: str, report: Report, invoke: Invoke) -> None:
    sizes = ("--buckets", "8", "--batches", "5,8", "--compiler", "eager", "--runs", "10")
    found = report("bench", shares, "--row-mask", "mask", *sizes)
    assert [b["max_abs_error"] < 1e-6 for b in found["results"][0]["batches"]] == [True, True]
    result = invoke("bench", "--suite", "core", "--row-mask", "mask")
    assert "--row-mask go with a model of your own, not a suite" in result.stderr


@pytest.mark.parametrize(
    "command", [("saturate", "--rows", "1,16"), ("loadgen", "--rate", "9", "--sizes", "fixed:16")]
)
def test_queries_beyond_the_largest_bucket(
    artifact: Path, invoke: Invoke, command: tuple[str, ...]
) -> None:
    result = invoke(command[0], artifact, *command[1:])
    assert result.exit_code == 1
    assert "queries have up to 16 rows; the largest bucket holds 8, and requests" in result.stderr


def test_a_funnel_says_which_stage_is_asked_for_too_much(artifact: Path, invoke: Invoke) -> None:
    """The last model alone is measured, too, on all that is ranked."""
    result = invoke("funnel", artifact, "--items", "16", "--top", "2")
    assert result.exit_code == 1
    name = artifact.stem
    said = f"{name} would rank 16 rows in the funnel {name}; its largest bucket holds 8, and requ"
    assert said in result.stderr


def test_a_schedule_leaves_queries_whole(artifact: Path, tmp_path: Path, report: Report) -> None:
    asked = ("--target-ms", "50", "--sizes", "fixed:6", "--windows", "0", "--cores", "1")
    found = report("schedule", artifact, *asked, "--out", tmp_path / "serving.json")["report"]
    settings = [found["baseline"], *found["settings"]]
    assert {s["chunk_rows"] for s in settings} == {None}
    assert {s["max_delay_us"] for s in settings} == {None}


def test_a_page_has_traffic_that_is_never_cut(artifact: Path) -> None:
    with Runtime.load(artifact) as runtime:
        traffic = LiveTraffic(open_artifact(artifact), runtime, 50.0)
        for _ in range(50):
            traffic.replay_one()
        assert {rows for rows, _ in traffic.snapshot()["sizes"]} == set(range(1, 9))


def test_no_bucket_runs_in_parts(artifact: Path) -> None:
    """Whatever was measured: `portion` is what a request is cut into."""
    manifest = open_artifact(artifact).manifest
    measured = [
        Candidate(bucket, (), "single", 1, "eager", 1.0, us, chosen=True, note="")
        for bucket, us in ((2, 1.0), (8, 900.0))
    ]
    tuned = replace(manifest, candidates=tuple(measured))
    assert [b["portion"] for b in describe(artifact, tuned)["buckets"]] == [2, 8]
    plain = replace(tuned, row_mask=None)
    assert [b["portion"] for b in describe(artifact, plain)["buckets"]] == [2, 2]


def test_segments_are_timed_with_a_mask(tmp_path: Path) -> None:
    """Not with what a larger bucket left where it lies: zeros, say, of a request without rows."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Embedding(64, 4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x[:, 0] + self.place((mask.sum() - 1).expand(mask.shape[0])).sum(1)

    given = {"x": torch.zeros(3, 64), "mask": torch.ones(3, dtype=torch.bool)}
    out = tmp_path / "last.rr"
    told: dict[str, Any] = {"row_mask": "mask", "compiler": "eager"}
    capture(Last().eval(), given, out=out, buckets=[1, 64], **told)
    assert set(measure(open_artifact(out), runs=2)) == {1, 64}
