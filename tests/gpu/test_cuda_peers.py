"""What we are measured against on CUDA says what the model says, at every batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recreplay.capture import capture
from recreplay.tools.bench.peers import PEERS
from recreplay.tools.bench.peers.base import Subject
from recreplay.tools.target import load_target


@pytest.mark.parametrize("name", ["dlrm", "din"])
@pytest.mark.parametrize("peer", ["eager", "multi_stream", "cuda_graph", "ours"])
def test_a_peer_says_what_the_model_says(peer: str, name: str, tmp_path: Path) -> None:
    target = load_target(f"recreplay.models:{name}", ["rows_scale=0.001"])
    out = tmp_path / "m.rr"
    capture(target.model, out=out, buckets=[1, 8], device="cuda", compiler="eager")
    loaded = PEERS[peer].load(Subject(target, out, "cuda", tmp_path))
    requests = {
        rows: [target.model.example_inputs(rows, seed=seed) for seed in range(3)] for rows in (1, 8)
    }
    calls = {
        rows: loaded.prepare({k: v.numpy() for k, v in examples[0].items()})
        for rows, examples in requests.items()
    }
    for seed in range(3):
        for rows, call in calls.items():
            request = requests[rows][seed]
            with torch.inference_mode():
                want = target.model(**target.model.arguments(request)).numpy()
            got = call({k: v.numpy() for k, v in request.items()})["output"]
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    loaded.close()
