"""`recreplay funnel`: which funnels there are, how good they are, and what a user may get wrong."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

from recreplay.capture import capture
from recreplay.runtime.errors import RecReplayError
from recreplay.tools.cli import app
from recreplay.tools.funnel.measure import Measured, fastest
from recreplay.tools.funnel.pipelines import Pipeline, pipelines
from recreplay.tools.funnel.quality import ndcg, overlap


def test_the_funnels_of_three_models() -> None:
    found = pipelines(3, 100, [50, 10, 20], 10)
    names = ("s", "m", "l")
    assert [p.describe(names) for p in found] == [
        "l",
        *("s 50 → l", "s 20 → l", "s 10 → l"),
        *("m 50 → l", "m 20 → l", "m 10 → l"),
        *("s 50 → m 20 → l", "s 50 → m 10 → l", "s 20 → m 10 → l"),
    ]


@given(st.integers(1, 4), st.sets(st.integers(1, 50), max_size=5), st.integers(1, 10))
def test_rows_fall_from_stage_to_stage(models: int, keeps: set[int], top: int) -> None:
    useful = {k for k in keeps if top <= k < 40}
    if models > 1 and not useful:
        with pytest.raises(RecReplayError, match="no stage can keep that"):
            pipelines(models, 40, sorted(keeps), top)
        return
    found = pipelines(models, 40, sorted(keeps), top)
    assert found[0] == Pipeline((models - 1,), ())
    assert len(set(found)) == len(found)
    for one in found:
        assert len(one.stages) == len(one.keeps) + 1
        assert list(one.stages) == sorted({*one.stages})
        assert one.stages[-1] == models - 1
        assert set(one.keeps) <= useful
        assert all(a > b for a, b in pairwise(one.keeps))


def test_a_loss_is_a_share_of_what_the_last_model_alone_reaches() -> None:
    """As `at most 10 % of NDCG lost` says."""
    funnel: Any = None
    alone, good, poor = (
        Measured(Pipeline((1,), ()), funnel, ndcg=quality, ns=[ns])
        for quality, ns in ((0.5, 300), (0.46, 200), (0.44, 100))
    )
    assert fastest([alone, good, poor], 0.1) is good
    assert fastest([alone, good, poor], 0.05) is alone
    assert fastest([alone, good, poor], 1.0) is poor


def test_too_many_funnels_are_refused() -> None:
    message = r"^6 models and 9 numbers of rows make \d+ funnels; at most 200 are measured in one"
    with pytest.raises(RecReplayError, match=message):
        pipelines(6, 1000, range(100, 1000, 100), 64)


def test_ndcg_is_recpipes() -> None:
    """Of `ndcg_score` there: its ideal is a positive in every place."""
    gains = [1 / np.log2(i + 2) for i in range(4)]
    assert ndcg(np.array([1, 1, 1, 1, 0]), 4) == pytest.approx(1)
    assert ndcg(np.array([0, 1, 0, 1]), 4) == pytest.approx((gains[1] + gains[3]) / sum(gains))
    assert ndcg(np.array([1, 0]), 4) == pytest.approx(
        gains[0] / sum(gains)
    )  # fewer rows than asked
    assert ndcg(np.zeros(4), 4) == 0
    assert overlap(np.array([4, 2]), np.array([2, 3, 4, 9])) == 0.5


class Scored(nn.Module):
    """Its score is what it reads, rounded: the coarser, the cheaper the model would be."""

    def __init__(self, step: float, heads: int) -> None:
        super().__init__()
        self.step, self.heads = step, heads
        self.item = nn.Embedding(9, 1)
        self.item.weight.data.zero_()

    def forward(self, worth: Tensor, item: Tensor) -> Any:
        score = torch.round(worth / self.step) * self.step + self.item(item)[:, 0]
        return {"other": -score, "worth": score} if self.heads == 2 else score


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of a coarse and a fine model, of one with two outputs, and queries."""
    folder = tmp_path_factory.mktemp("funnel")
    example = {"worth": torch.randn(4), "item": torch.tensor([1, 2, 3, 4])}
    for name, step, heads in (("coarse", 0.5, 1), ("fine", 1e-4, 1), ("both", 1e-4, 2)):
        model = Scored(step, heads).eval()
        capture(model, example, out=folder / f"{name}.rr", buckets=[8, 40], compiler="eager")
    draw = np.random.default_rng(0)
    worth = draw.standard_normal(200).astype(np.float32)
    best = np.zeros(200)
    for at in range(0, 200, 40):
        best[at + np.argsort(-worth[at : at + 40])[:4]] = 1
    arrays = {"worth": worth, "item": draw.integers(0, 9, 200), "best": best, "odd": best * 2}
    arrays["flat"] = best[:, None]
    arrays["one"] = np.array(1)
    np.savez(folder / "queries.npz", **arrays)
    return folder


def invoke(made: Path, *arguments: object) -> Any:
    given = ("--items", 40, "--top", 4, "--runs", 4, "--keep", "8", *arguments)
    names = [made / a if str(a).endswith((".rr", ".npz")) else a for a in given]
    return CliRunner().invoke(app, ["funnel", *map(str, names)])


def report(made: Path, *arguments: object) -> Any:
    done = invoke(made, *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_labels_say_how_good_funnels_are(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    given = ("coarse.rr", "fine.rr", "--inputs", "queries.npz", "--labels", "best")
    found = report(made, *given, "--out", out)
    assert json.loads(out.read_text()) == found
    assert (found["queries"], found["labels"], found["items"]) == (5, "best", 40)
    alone, both = found["funnels"]
    assert (alone["stages"], alone["keep"]) == (["fine"], [])
    assert (both["stages"], both["keep"], both["name"]) == (
        ["coarse", "fine"],
        [8],
        "coarse 8 → fine",
    )
    assert alone["ndcg"] == alone["overlap"] == 1
    assert both["ndcg"] == both["overlap"] == 1  # eight of the coarse hold the best four
    assert both["latency_us"]["p50"] <= both["latency_us"]["p99"]
    assert alone["speedup"] == 1
    faster = min(found["funnels"], key=lambda item: item["latency_us"]["p95"])
    assert found["chosen"] == faster["name"]  # they are as good as each other
    assert any(item["on_frontier"] for item in found["funnels"])
    assert found["stamp"]["command"]


def test_without_labels_the_last_model_alone_is_right(made: Path) -> None:
    found = report(made, "coarse.rr", "both.rr", "--score", "both=worth", "--queries", 3)
    alone, both = found["funnels"]
    assert alone["ndcg"] == alone["overlap"] == 1
    assert found["queries"] == 3
    assert 0 < both["overlap"] <= 1
    wrong = report(made, "coarse.rr", "both.rr", "--score", "both=other", "--queries", 3)
    assert wrong["funnels"][1]["overlap"] < 0.5  # the coarse lets the others through
    assert wrong["chosen"] == "both"
    loose = report(made, "coarse.rr", "both.rr", "--score", "both=other", "--loss", 1)
    faster = min(loose["funnels"], key=lambda item: item["latency_us"]["p95"])
    assert loose["chosen"] == faster["name"]


def test_a_load_says_what_became_of_the_queries(made: Path) -> None:
    given = ("coarse.rr", "fine.rr", "--rate", 50, "--seconds", 0.4)
    for item in report(made, *given)["funnels"]:
        (load,) = item["loads"]
        assert load["rate"] == 50
        assert load["answered"] == load["offered"] > 5
    done = invoke(made, *given)
    assert "at 50/s" in done.stdout
    assert "Fastest by p95, at most 0.1 % of NDCG lost: " in done.stdout
    assert "coarse 8 → fine" in done.stdout


def test_queries_that_were_not_answered_are_noticed(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were are the fast ones."""
    load = {"rate": 9.0, "offered": 20, "answered": 14, "refused": 6, "latency_ms": {"p95": 1.0}}
    monkeypatch.setattr("recreplay.tools.funnel.measure.load", lambda *given: load)
    done = invoke(made, "fine.rr", "--rate", 9)
    assert done.exit_code == 0, done.stderr
    assert (
        "notice: fine at 9/s: 6 of 20 queries were not answered and are not in its latency"
        in done.stderr
    )


def test_models_of_one_name_are_told_apart(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "both.rr"
    shutil.copytree(made / "both.rr", other)
    scores = ("--score", f"{made / 'both.rr'}=worth", "--score", f"{other}=other")
    found = report(made, "both.rr", other, *scores)
    assert [f["name"] for f in found["funnels"]] == [str(other), f"{made / 'both.rr'} 8 → {other}"]
    assert found["funnels"][1]["overlap"] < 0.5  # the first ranks by the opposite


def test_rows_that_no_stage_may_keep_are_noticed(made: Path) -> None:
    done = invoke(made, "coarse.rr", "fine.rr", "--keep", "2,8,40")
    assert done.exit_code == 0, done.stderr
    assert "notice: --keep 2, 40 is left out: a stage lets 4 rows (--top) or more" in done.stderr
    assert "left out" not in invoke(made, "coarse.rr", "fine.rr").stderr


def test_a_stage_without_a_bucket_of_its_rows_is_noticed(made: Path) -> None:
    done = invoke(made, "coarse.rr", "fine.rr", "--keep", "8,10")
    assert done.exit_code == 0, done.stderr
    assert "notice: fine has no bucket of 10 rows: a replay pads them to 40" in done.stderr
    assert "bucket of 8" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fine.rr", "--labels", "best"), "--labels names an array of --inputs; give that, too"),
        (("fine.rr", "--top", 41), "--top 41 is above --items 40"),
        (("coarse.rr", "fine.rr", "--keep", "2"), "--keep 2: no stage can keep that; expected 4 ("),
        (("both.rr",), "stage 1 says no score; its outputs are other, worth"),
        (("fine.rr", "--score", "x=y"), "--score 'x=y': expected MODEL=OUTPUT, where models are f"),
        (("fine.rr", "--inputs", "queries.npz", "--labels", "y"), "queries.npz has no y; it has w"),
        (("fine.rr", "--inputs", "queries.npz", "--labels", "odd"), "labels 'odd' are not one 0"),
        (("fine.rr", "--inputs", "queries.npz", "--labels", "flat"), "labels 'flat' are not one"),
        (
            ("fine.rr", "--inputs", "queries.npz", "--labels", "one"),
            "queries.npz: one is one value",
        ),
        (("fine.rr", "--inputs", "queries.npz", "--items", 300), "queries.npz has 200 rows; a que"),
        (("fine.rr", "--rate", "inf"), "--rate is inf; expected a finite number above 0"),
        (("fine.rr", "--rate", 1e9), "--rate 1e+09 for --seconds 10 are 1e+10 queries; at most"),
        (("none.rr",), "no artifact at"),
        (("fine.rr", "--out", "/proc/no/f.json"), "cannot write /proc/no/f.json"),
    ],
)
def test_what_a_user_gets_wrong_is_said(made: Path, arguments: Any, message: str) -> None:
    done = invoke(made, *arguments)
    assert done.exit_code == 1
    assert "error: " in done.stderr
    assert message in re.sub(r"\s+", " ", done.stderr)


def test_jagged_models_are_drawn_for(feeds: dict[int, Path]) -> None:
    """Of one user and of several, who have an index besides."""
    command = ["funnel", str(feeds[1]), str(feeds[4]), "--items", "12", "--top", "2", "--keep", "4"]
    done = CliRunner().invoke(app, [*command, "--runs", "2", "--queries", "3", "--json"])
    assert done.exit_code == 0, done.stderr
    assert [f["overlap"] for f in json.loads(done.stdout)["funnels"]] == [1, 1]
    done = CliRunner().invoke(app, [*command, "--inputs", "q.npz"])
    assert "inputs user, seen, seen_offsets, tags, tag_offsets, user_index are not b" in done.stderr


def test_the_example_makes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[3] / "examples/funnel.py"
    spec = importlib.util.spec_from_file_location("funnel_example", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    for name, value in {"TRAINED": 1024, "ITEMS": 64, "QUERIES": 2, "KEEPS": [8, 16]}.items():
        monkeypatch.setattr(example, name, value)
    monkeypatch.setattr(
        example,
        "capture",
        lambda *given, tune, **options: capture(*given, **options, compiler="eager"),
    )
    example.main(tmp_path)
    names = [str(tmp_path / name) for name in ("small.rr", "med.rr", "large.rr")]
    command = ["funnel", *names, "--inputs", str(tmp_path / "queries.npz"), "--labels", "click"]
    command += ["--items", "64", "--top", "8", "--keep", "8,16", "--runs", "2", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["queries"] == 2
    assert [f["name"] for f in found["funnels"]][-1] == "small 16 → med 8 → large"
