"""A replay beside Python; timed, and therefore run when no other test uses the GPU."""

import threading
import time
from pathlib import Path

import numpy as np
import torch

from recreplay.capture import capture
from recreplay.models import dlrm
from recreplay.runtime import Runtime


def test_a_replay_does_not_wait_for_a_thread_that_runs_python(tmp_path: Path) -> None:
    """Such a thread has the interpreter's lock for 5 ms, whoever wants it."""
    model = dlrm(tables=8, rows_scale=0.01)
    capture(model, out=tmp_path / "m.rr", buckets=[8], device="cuda", compiler="eager")
    given = model.example_inputs(8, seed=1)
    with torch.inference_mode():
        want = model(**model.arguments(given)).numpy()
    request = {name: tensor.numpy() for name, tensor in given.items()}
    ended, took = threading.Event(), []

    def count() -> None:
        while not ended.is_set():
            sum(range(1000))

    with Runtime.load(tmp_path / "m.rr") as runtime:
        beside = threading.Thread(target=count)
        beside.start()
        try:
            for _ in range(100):
                time.sleep(0.001)
                begun = time.perf_counter()
                got = runtime.run(request)["output"]
                took.append(time.perf_counter() - begun)
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        finally:
            ended.set()
            beside.join()
    assert np.median(took) < 0.003
