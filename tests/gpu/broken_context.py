"""What breaks the CUDA context, for processes of their own: `test_cuda_broken.py` starts them."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recreplay.capture import capture
from recreplay.models import dlrm
from recreplay.runtime import Offload, Runtime, Serving
from recreplay.runtime.devices.base import Recording
from recreplay.runtime.devices.cuda import CudaDevice
from recreplay.runtime.errors import LanesLostError, ReplayError

MODEL = {"tables": 2, "rows_scale": 0.01}


def captured(folder: Path, device: str) -> Path:
    out = folder / f"{device}.rr"
    capture(dlrm(**MODEL), out=out, buckets=[4], device=device, compiler="eager", rewrites=())
    return out


def request(seed: int = 1) -> dict[str, Any]:
    return {k: v.numpy() for k, v in dlrm(**MODEL).example_inputs(3, seed=seed).items()}


def far(given: dict[str, Any]) -> dict[str, Any]:
    """With ids that are in no table."""
    bad = given["ids_1"].copy()
    bad[:] = 10**9
    return {**given, "ids_1": bad}


def break_it() -> None:
    """By a kernel that is none of ours."""
    with pytest.raises(RuntimeError):  # noqa: PT012
        out = torch.ones(3, device="cuda")
        out.index_copy_(0, torch.tensor([10**6], device="cuda"), torch.ones(1, device="cuda"))
        torch.cuda.synchronize()


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_lanes_are_lost_and_the_process_lives(tmp_path: Path, lanes: int) -> None:
    runtime = Runtime.load(
        captured(tmp_path, "cuda"), check="off", serving=Serving(lanes=lanes, wait="block")
    )
    runtime.run(request())
    for _ in range(lanes):
        with pytest.raises(ReplayError, match=r"replaying .* failed"):
            runtime.run(far(request()))
        gc.collect()
    with pytest.raises(LanesLostError, match=r"the last lane failed and could not be made anew"):
        runtime.run(request())
    with pytest.raises(LanesLostError):
        runtime.submit(request()).result(60)
    assert runtime.lanes_alive() == 0
    runtime.close()


def test_the_host_takes_over(tmp_path: Path) -> None:
    host = Runtime.load(captured(tmp_path, "cpu"))
    gpu = Runtime.load(captured(tmp_path, "cuda"), check="off")
    both = Offload(host, gpu, 1)
    want = both.run(request())["output"]
    with pytest.raises(ReplayError):
        both.run(far(request()))
    for _ in range(2):
        np.testing.assert_allclose(both.run(request())["output"], want, rtol=1e-4, atol=1e-5)
    assert both.stats()["taken_over"] == 2
    gpu.close()
    host.close()


@pytest.mark.parametrize("fed", [True, False])
def test_what_others_broke_is_seen(tmp_path: Path, fed: bool) -> None:
    runtime = Runtime.load(captured(tmp_path, "cuda"))
    given = request()
    if fed:
        given = {name: torch.from_numpy(array).cuda() for name, array in given.items()}
    runtime.run(given)
    break_it()
    with pytest.raises(ReplayError):
        runtime.run(given)
    with pytest.raises(LanesLostError):
        runtime.run(given)
    runtime.close()


def test_one_that_is_not_closed(tmp_path: Path) -> None:
    runtime = Runtime.load(captured(tmp_path, "cuda"), check="off")
    with pytest.raises(ReplayError):
        runtime.run(far(request()))


def test_what_was_recorded_is_closed_after_the_context_was_broken() -> None:
    device = CudaDevice(0)
    memory = device.staging(8)

    def copy(recording: Recording) -> None:
        with recording.on(0):
            recording.launch(memory.upload)
            recording.launch(memory.download)

    graph = device.record(1, copy)
    graph.replay()
    break_it()
    graph.close()
    device.close()
