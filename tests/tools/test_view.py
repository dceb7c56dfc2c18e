"""The page's data: it says what the artifact holds, and `inspect --json` says the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from recreplay.capture import capture
from recreplay.capture.schedule import idle_share, in_turn, longest_path, side_by_side
from recreplay.models import streamrec
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import ArtifactCorruptError
from recreplay.runtime.graph import GRAPH, read_graph
from recreplay.runtime.plan import Plan, Step, check_plan
from recreplay.tools.view.live import LiveTraffic
from recreplay.tools.view.page import SCRIPTS, render


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine features of three widths, whose tables are stacked."""
    out = tmp_path_factory.mktemp("view") / "view.rr"
    options: dict[str, Any] = {
        "strategy": "greedy",
        "streams": 3,
        "compiler": "eager",
        "rewrites": ("stack_lookups",),
    }
    capture(streamrec(features=9, rows_scale=0.001), out=out, buckets=[2, 8], **options)
    return out


def page_of(path: Path, invoke: Callable[..., Result], out: Path, *options: object) -> Any:
    result = invoke("view", path, "--out", out, *options)
    assert result.exit_code == 0, result.stderr
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', out.read_text())
    assert found is not None
    return json.loads(found[1])


def test_the_page_and_inspect_say_the_same(
    path: Path, invoke: Callable[..., Result], report: Callable[..., Any], tmp_path: Path
) -> None:
    data = page_of(path, invoke, tmp_path / "page.html")
    assert data["artifact"] == report("inspect", path)
    for bucket in data["buckets"]:
        assert bucket == report("inspect", path, "--bucket", bucket["size"])


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--serve", "--port", "99999"], 2, "Invalid value for '--port'"),
        (["--serve", "--port", "-1"], 2, "Invalid value for '--port'"),
        (["--traffic", "20"], 1, "error: --traffic replays requests for a page that is served; "),
    ],
)
def test_options_that_no_page_can_have(
    path: Path, invoke: Callable[..., Result], options: list[str], code: int, message: str
) -> None:
    result = invoke("view", path, *options)
    assert result.exit_code == code
    assert message in result.stderr


def test_measured_times_are_of_every_segment(
    path: Path, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    data = page_of(path, invoke, tmp_path / "page.html", "--measure", "--runs", 25)
    for bucket, item in zip(data["buckets"], data["artifact"]["buckets"], strict=True):
        measured, modelled = bucket["timings"]
        assert (measured["kind"], modelled["kind"]) == ("measured", "modelled")
        assert len(measured["durations_us"]) == len(bucket["steps"])
        assert min(measured["durations_us"]) > 0
        assert measured["serial_replay"]
        assert item["replay_us"] == measured["replay_us"]
        # The parts are the whole, but for the clock and the noise of a shared machine.
        assert 0.2 < measured["total_us"] / measured["replay_us"]["p50"] < 5


def test_the_page_fetches_nothing(
    path: Path, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    page_of(path, invoke, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "default-src &#x27;none&#x27;" in text
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg|http-equiv", "", text)


def test_bench_results_are_shown_and_others_refused(
    path: Path, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps({"kind": "recreplay-bench", "results": []}))
    bad.write_text("[1")
    data = page_of(path, invoke, tmp_path / "page.html", "--bench", good)
    assert [b["file"] for b in data["benches"]] == ["good.json"]
    result = invoke("view", path, "--out", tmp_path / "no.html", "--bench", bad)
    assert result.exit_code == 1
    assert "bad.json is not a result file" in result.stderr
    assert not (tmp_path / "no.html").exists()


def test_the_graph_holds_the_plan_that_was_captured_and_the_other_strategies(path: Path) -> None:
    manifest = open_artifact(path).manifest
    assert GRAPH in manifest.files
    graphs = read_graph(path)
    for bucket in manifest.buckets:
        graph = graphs[bucket.size].captured
        strategies = [plan.strategy for plan in graph.plans]
        assert strategies[0] == "greedy"
        assert sorted(strategies) == ["feature", "greedy", "matching", "single"]
        assert len({plan.edges == graph.plans[0].edges for plan in graph.plans}) >= 1
        for plan in graph.plans:
            check_plan(plan)
            assert {s.name for s in plan.steps} == {op.name for op in graph.operators}
        streams = {step.name: step.stream for step in graph.plans[0].steps}
        for step, segment in zip(bucket.plan.steps, bucket.segments, strict=True):
            assert {streams[op] for op in segment.operators} == {step.stream}
        assert any(op.module.startswith("branches.") for op in graph.operators)
        before = graphs[bucket.size].before
        assert before is not None
        assert len({op.branch for op in before.operators} - {None}) == 9


def test_an_artifact_without_a_graph_is_still_shown(
    artifact: Path, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    """An older capture wrote none."""
    from dataclasses import replace

    from recreplay.capture.writer import seal

    (artifact / GRAPH).unlink()
    manifest = open_artifact_unsealed(artifact)
    for name in ("manifest.json", "manifest.sha256"):
        (artifact / name).unlink()
    seal(artifact, replace(manifest, files={}))
    result = invoke("view", artifact, "--out", tmp_path / "page.html")
    assert result.exit_code == 0
    assert "no operator graph" in result.stderr
    result = invoke("trace", artifact, "--bucket", 2, "-o", tmp_path / "t.json")
    assert result.exit_code == 1
    assert "use --measure" in result.stderr


def open_artifact_unsealed(artifact: Path) -> Any:
    from recreplay.runtime.manifest import Manifest

    return Manifest.from_json(json.loads((artifact / "manifest.json").read_text()))


def test_a_damaged_graph_is_refused(artifact: Path) -> None:
    (artifact / GRAPH).write_text('{"buckets": [{"size": 2}]}')
    with pytest.raises(ArtifactCorruptError, match="not a graph"):
        read_graph(artifact)


def test_every_script_is_in_the_page() -> None:
    from importlib import resources

    folder = resources.files("recreplay.tools.view") / "assets"
    assert {f.name for f in folder.iterdir() if f.name.endswith(".js")} == set(SCRIPTS)
    assert "default-src" in render({"artifact": {"model": "<x>"}, "buckets": [], "benches": []})


STEPS = (Step("a", 0), Step("b", 1), Step("c", 0), Step("d", 0, (1,)))
PLAN = Plan("matching", STEPS, ((0, 2), (1, 3), (2, 3)))


def test_streams_run_beside_each_other_and_wait() -> None:
    found = side_by_side(PLAN, [1.0, 5.0, 2.0, 1.0])
    assert found.starts == (0.0, 0.0, 1.0, 5.0)
    assert found.critical == (False, True, False, True)
    assert (found.total, found.serial) == (6.0, 9.0)
    assert longest_path(PLAN, [1.0, 5.0, 2.0, 1.0]) == 6.0
    assert idle_share(PLAN, found) == pytest.approx(1 - 9 / 12)


def test_in_turn_is_the_issue_order() -> None:
    found = in_turn(PLAN, [1.0, 5.0, 2.0, 1.0])
    assert found.starts == (0.0, 1.0, 6.0, 8.0)
    assert found.total == found.serial == 9.0


@pytest.mark.parametrize("users", [1, 4])
def test_traffic_has_jagged_values_and_users(feeds: dict[int, Path], users: int) -> None:
    with Runtime.load(feeds[users]) as runtime:
        traffic = LiveTraffic(open_artifact(feeds[users]), runtime, 50.0)
        for _ in range(20):
            traffic.replay_one()
        assert runtime.stats()["requests"] == 20
