"""The graph that CUDA recorded is the one that the plan says."""

from pathlib import Path

import pytest

from recreplay.capture import capture
from recreplay.models import streamrec
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.lane import Lane
from recreplay.runtime.segments import load_package
from recreplay.runtime.weights import load_tensors, with_views


@pytest.mark.parametrize("streams", [1, 2, 4, 8])
@pytest.mark.parametrize("strategy", ["feature", "matching", "greedy"])
def test_forks_and_waits_are_those_of_the_plan(strategy: str, streams: int, tmp_path: Path) -> None:
    """Node for node: what must be ordered is, and nothing else; no allocation inside."""
    from recreplay.tools.captured_graph import WatchedDevice, compare_with_plan

    model = streamrec(features=12, rows_scale=0.001)
    capture(
        model,
        out=tmp_path / "m.rr",
        buckets=[4, 32],
        device="cuda",
        strategy=strategy,
        streams=streams,
        compiler="eager",
        rewrites=(),
    )
    artifact = open_artifact(tmp_path / "m.rr")
    manifest, root = artifact.manifest, artifact.path
    device = WatchedDevice(0)
    weights = with_views(
        load_tensors(root / "weights.safetensors", device.torch_device), manifest.tables
    )
    constants = load_tensors(root / "constants.safetensors", device.torch_device)
    tensors = {f"weight:{k}": v for k, v in weights.items()}
    tensors |= {f"const:{k}": v for k, v in constants.items()}
    packages = {
        k: load_package(p.compiler, root / p.path, device.torch_device)
        for k, p in manifest.packages.items()
    }
    lane = Lane(manifest, device, packages, tensors, "error")
    try:
        largest_first = sorted(manifest.buckets, key=lambda b: b.size, reverse=True)
        for bucket, graph in zip(largest_first, device.graphs, strict=True):
            assert compare_with_plan(graph, bucket.plan) == []
            assert bucket.plan.streams == min(streams, bucket.plan.streams)
    finally:
        lane.close()
        device.close()
