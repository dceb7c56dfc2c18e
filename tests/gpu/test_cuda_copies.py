"""Copies inside of a graph against copies before it: both bring the same inputs."""

from pathlib import Path

import pytest

from recreplay.capture import capture
from recreplay.models import dlrm
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.devices.cuda import CudaGraph
from recreplay.runtime.errors import ParityError
from recreplay.tools.bench.copies import compare_copies


def test_both_ways_are_timed_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.rr"
    model = dlrm(tables=8, rows_scale=0.01)
    capture(model, out=out, buckets=[1, 8], device="cuda", compiler="eager")
    found = compare_copies(open_artifact(out), runs=3)
    assert sorted(found) == [1, 8]
    for copies in found.values():
        assert copies.inputs == 9  # dense features and eight lists of ids
        assert 0 < copies.inside_us.p50 < 1e6
        assert 0 < copies.outside_us.p50 < 1e6
    # A graph that does not bring its inputs is found out.
    monkeypatch.setattr(CudaGraph, "replay", CudaGraph.replay_fed)
    with pytest.raises(ParityError, match="the other way to copy"):
        compare_copies(open_artifact(out), runs=3)
