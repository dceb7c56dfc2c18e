"""The graph that CUDA recorded is the one that the plan says."""

from pathlib import Path

import pytest

from recreplay.capture import capture
from recreplay.models import streamrec
from recreplay.runtime.artifact import Artifact, open_artifact


def captured(out: Path, strategy: str, streams: int) -> Artifact:
    """Twelve branches in two buckets, as the strategy has them."""
    model = streamrec(features=12, rows_scale=0.001)
    capture(
        model,
        out=out,
        buckets=[4, 32],
        device="cuda",
        strategy=strategy,
        streams=streams,
        compiler="eager",
        rewrites=(),
    )
    return open_artifact(out)


@pytest.mark.parametrize("streams", [1, 2, 4, 8])
@pytest.mark.parametrize("strategy", ["feature", "matching", "greedy"])
def test_forks_and_waits_are_those_of_the_plan(strategy: str, streams: int, tmp_path: Path) -> None:
    """Node for node: what must be ordered is, and nothing else; no allocation inside."""
    from recreplay.tools.captured_graph import WatchedDevice, compare_with_plan
    from recreplay.tools.view.measured import lane_on

    artifact = captured(tmp_path / "m.rr", strategy, streams)
    manifest, device = artifact.manifest, WatchedDevice(0)
    with lane_on(device, artifact):
        largest_first = sorted(manifest.buckets, key=lambda b: b.size, reverse=True)
        for bucket, graph in zip(largest_first, device.graphs, strict=True):
            assert compare_with_plan(graph, bucket.plan) == []
            assert bucket.plan.streams == min(streams, bucket.plan.streams)


@pytest.mark.parametrize("hooks", [True, False], ids=["torch's marks", "by order"])
def test_every_segment_has_its_kernels(
    hooks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profiled replay: all kernels inside the replay, no segment before what it waits for."""
    from recreplay.tools.view import graph_marks
    from recreplay.tools.view.measured import measure

    if not hooks:
        monkeypatch.setattr(graph_marks, "torch_hooks", lambda: None)
    elif graph_marks.torch_hooks() is None:
        pytest.skip("this torch has no hooks to mark nodes with")
    artifact = captured(tmp_path / "m.rr", "matching", 4)
    found = measure(artifact, runs=60)
    for bucket in artifact.manifest.buckets:
        seen, plan = found[bucket.size], bucket.plan
        assert seen.starts_us is not None
        assert all(seen.kernels)
        assert seen.replay_us["p50"] > 0
        ends = [start + took for start, took in zip(seen.starts_us, seen.segments_us, strict=True)]
        for at, step in enumerate(plan.steps):
            for before in step.waits:
                assert ends[before] <= seen.starts_us[at] + 0.5  # the timer's own grain
