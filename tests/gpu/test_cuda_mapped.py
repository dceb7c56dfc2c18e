"""Graphs whose kernels read and write the host's memory themselves, with no copies."""

from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import check

from recreplay.capture import capture
from recreplay.models import dlrm
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import Artifact, open_artifact
from recreplay.runtime.devices.cuda import CudaDevice
from recreplay.runtime.devices.cuda_bindings import bindings, checked
from recreplay.runtime.errors import ParityError
from recreplay.tools.bench.mapped import MappedDevice, MappedStaging, compare_mapped
from recreplay.tools.view.measured import lane_on


def captured(out: Path, model: torch.nn.Module, strategy: str, streams: int) -> Artifact:
    capture(
        *(model,),
        **{"out": out, "buckets": [1, 8], "device": "cuda", "compiler": "eager"},
        **{"strategy": strategy, "streams": streams},
    )
    return open_artifact(out)


@pytest.mark.parametrize(("strategy", "streams"), [("single", 1), ("feature", 4)])
def test_requests_are_answered_as_by_the_model_with_two_nodes_less(
    strategy: str, streams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several streams begin with nothing to wait for."""
    model, cudart = dlrm(tables=8, rows_scale=0.01), bindings()
    artifact = captured(tmp_path / "m.rr", model, strategy, streams)
    nodes: dict[type, list[int]] = {CudaDevice: [], MappedDevice: []}
    for kind in nodes:
        usual = kind.upload_node

        def upload_node(device: CudaDevice, graph: torch.cuda.CUDAGraph, usual=usual) -> object:
            raw = cudart.cudaGraph_t(graph.raw_cuda_graph())
            nodes[type(device)].append(checked(cudart.cudaGraphGetNodes(raw, 0))[1])
            return usual(device, graph)

        monkeypatch.setattr(kind, "upload_node", upload_node)
    for kind in nodes:
        with lane_on(kind(0), artifact) as lane:
            runtime = Runtime(artifact, lane)
            for seed, rows in enumerate((1, 3, 8, 1)):
                check(model, runtime, rows, seed)
    assert nodes[MappedDevice] == [count - 2 for count in nodes[CudaDevice]]


def test_both_are_timed_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = captured(tmp_path / "m.rr", dlrm(tables=8, rows_scale=0.01), "single", 1)
    found = compare_mapped(artifact, runs=3)
    assert sorted(found) == [1, 8]
    for mapped in found.values():
        assert 0 < mapped.copied_us.p50 < 1e6
        assert 0 < mapped.mapped_us.p50 < 1e6
        assert mapped.crossing_bytes > 0
    # Outputs that do not arrive are found out.
    elsewhere = np.zeros(1 << 20, np.uint8)
    whole = MappedStaging.__init__

    def other(staging: MappedStaging, nbytes: int, device: torch.device) -> None:
        whole(staging, nbytes, device)
        staging.host = elsewhere[:nbytes]

    monkeypatch.setattr(MappedStaging, "__init__", other)
    with pytest.raises(ParityError, match="a graph that copies"):
        compare_mapped(artifact, runs=3)
