"""The trace: in Kineto's layout, lanes are the plan's streams and flows are its waits."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from recreplay.capture import capture
from recreplay.models import streamrec
from recreplay.runtime.artifact import open_artifact


@pytest.fixture(scope="module")
def streams_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine features on four streams."""
    out = tmp_path_factory.mktemp("streams") / "streams.rr"
    options: dict[str, Any] = {
        "strategy": "matching",
        "streams": 4,
        "compiler": "eager",
        "rewrites": ("stack_lookups",),
    }
    capture(streamrec(features=9, rows_scale=0.001), out=out, buckets=[2, 8], **options)
    return out


@pytest.fixture(scope="module", params=["modelled", "measured"])
def trace(
    request: pytest.FixtureRequest,
    streams_path: Path,
    invoke: Callable[..., Result],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Any, Any]:
    """The trace of bucket 8, and what `inspect` says of it."""
    out = tmp_path_factory.mktemp("trace") / "trace.json"
    more = ["--measure", "--runs", "3"] if request.param == "measured" else []
    result = invoke("trace", streams_path, "--bucket", 8, "-o", out, *more)
    assert result.exit_code == 0, result.stderr
    shown = invoke("inspect", streams_path, "--bucket", 8, "--json")
    return json.loads(out.read_text()), json.loads(shown.stdout)


def of(trace: Any, phase: str) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == phase]


def test_slices_are_the_steps_on_their_lanes(trace: tuple[Any, Any], streams_path: Path) -> None:
    plan = open_artifact(streams_path).manifest.buckets[-1].plan
    slices = of(trace[0], "X")
    assert [(s["name"], s["tid"]) for s in slices] == [(s.name, s.stream + 1) for s in plan.steps]
    assert plan.streams == 4
    names = {e["tid"]: e["args"]["name"] for e in of(trace[0], "M") if e["name"] == "thread_name"}
    assert names == {stream + 1: f"stream {stream}" for stream in range(4)}
    assert len({event["pid"] for event in trace[0]["traceEvents"]}) == 1


def test_slices_of_a_lane_do_not_overlap(trace: tuple[Any, Any]) -> None:
    lanes: dict[int, list[dict[str, Any]]] = {}
    for event in of(trace[0], "X"):
        assert event["dur"] > 0
        lanes.setdefault(event["tid"], []).append(event)
    for lane in lanes.values():
        for left, right in pairwise(lane):
            assert left["ts"] + left["dur"] <= right["ts"] + 0.002


def test_flows_are_the_waits(trace: tuple[Any, Any], streams_path: Path) -> None:
    plan = open_artifact(streams_path).manifest.buckets[-1].plan
    slices = of(trace[0], "X")
    starts = {event["id"]: event for event in of(trace[0], "s")}
    found = []
    for end in of(trace[0], "f"):
        assert end["bp"] == "e"
        found.append((holder(slices, starts[end["id"]]), holder(slices, end)))
    waits = [(plan.steps[w].name, step.name) for step in plan.steps for w in step.waits]
    assert found == waits
    assert len(waits) >= 3
    assert len(starts) == len(waits)


def holder(slices: list[dict[str, Any]], event: dict[str, Any]) -> str:
    """The slice that an end of a flow lies in."""

    def ns(us: float) -> int:  # whole nanoseconds, which is what the numbers stand for
        return round(us * 1000)

    at = ns(event["ts"])
    found = [
        s["name"]
        for s in slices
        if s["tid"] == event["tid"] and ns(s["ts"]) <= at < ns(s["ts"]) + ns(s["dur"])
    ]
    assert len(found) == 1
    return str(found[0])


def test_times_are_the_models_or_follow_each_other(trace: tuple[Any, Any]) -> None:
    slices = of(trace[0], "X")
    marks = {event["name"]: event["ts"] for event in of(trace[0], "i")}
    assert sorted(marks) == ["fork", "join"]
    if "measured" in trace[0]["traceName"]:
        # The CPU replays in issue order, whatever lane a segment is in.
        for left, right in pairwise(slices):
            assert right["ts"] == pytest.approx(left["ts"] + left["dur"], abs=0.01)
        assert "one after the other" in trace[0]["recreplay"]["times"]
    else:
        timing = trace[1]["timings"][0]
        assert [s["ts"] for s in slices] == timing["starts_us"]
        assert [s["dur"] for s in slices] == timing["durations_us"]
        assert marks == {"fork": 0.0, "join": timing["total_us"]}


def test_an_unknown_bucket_is_refused(
    streams_path: Path, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    result = invoke("trace", streams_path, "--bucket", 3, "-o", tmp_path / "t.json")
    assert result.exit_code == 1
    assert "its buckets are 2, 8" in result.stderr
