"""Requests so large that several threads fill them."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from recreplay.capture import capture
from recreplay.models import dlrm, two_tower
from recreplay.runtime import Runtime
from recreplay.runtime.errors import IdRangeError

BUCKET = 4096  # 26 features of 20 ids in 4 bytes each: 8.5 MB
SMALL = {"rows_scale": 0.001, "dim": 8}


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    out: Path = tmp_path_factory.mktemp("large") / "m.rr"
    capture(dlrm(**SMALL), out=out, buckets=[8, BUCKET], device="cuda", compiler="eager")
    with Runtime.load(out) as loaded:
        yield loaded


@pytest.mark.parametrize("rows", [BUCKET, 3001, 8])
def test_scores_are_eagers(runtime: Runtime, rows: int) -> None:
    model = dlrm(**SMALL)
    for seed in range(2):
        request = model.example_inputs(rows, seed=seed)
        with torch.inference_mode():
            want = model(**model.arguments(request)).numpy()
        arrays = {name: tensor.numpy() for name, tensor in request.items()}
        np.testing.assert_allclose(runtime.run(arrays)["output"], want, rtol=1e-4, atol=1e-5)
        with runtime.borrow(rows) as borrowed:
            for name, array in arrays.items():
                borrowed.inputs[name][:] = array
            got = borrowed.run()["output"]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_bad_id_in_the_last_row_is_an_error(runtime: Runtime) -> None:
    arrays = {name: t.numpy() for name, t in dlrm(**SMALL).example_inputs(BUCKET).items()}
    arrays["ids_25"][-1, -1] = -1
    with pytest.raises(
        IdRangeError, match=rf"^input 'ids_25', row {BUCKET - 1}, position 19: id -1"
    ):
        runtime.run(arrays)


def test_helpers_end_with_the_runtime(tmp_path: Path) -> None:
    """All lanes share them."""
    helpers = min(7, len(os.sched_getaffinity(0)) - 1)
    out, model = tmp_path / "m.rr", dlrm(**SMALL)
    capture(model, out=out, buckets=[BUCKET], device="cuda", compiler="eager")
    arrays = {name: tensor.numpy() for name, tensor in model.example_inputs(BUCKET).items()}
    with Runtime.load(out, lanes=2) as loaded:
        loaded.run(arrays)
        before = threads()
    assert before - threads() >= helpers


def test_jagged_values(tmp_path: Path) -> None:
    rows, model = 2 * BUCKET, two_tower(**SMALL)
    out = tmp_path / "m.rr"
    capture(model, out=out, buckets=[rows], device="cuda", compiler="eager")
    request = model.example_inputs(rows, seed=1)
    with torch.inference_mode():
        want = model(**request).numpy()
    arrays = {name: tensor.numpy() for name, tensor in request.items()}
    before = threads()
    with Runtime.load(out) as loaded:
        np.testing.assert_allclose(loaded.run(arrays)["output"], want, rtol=1e-4, atol=1e-5)
        jagged = {name: len(arrays[name]) for name in model.jagged_inputs}
        with loaded.borrow(rows, jagged) as borrowed:
            for name, array in arrays.items():
                borrowed.inputs[name][:] = array
            got = borrowed.run()["output"]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        assert threads() > before
