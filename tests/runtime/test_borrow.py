"""Borrowed staging memory: what is written there is what is scored, and nobody else meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from recreplay.models import dlrm
from recreplay.runtime import Runtime
from recreplay.runtime.errors import (
    BorrowError,
    IdRangeError,
    ReplayError,
    RuntimeClosedError,
)

Capture = Callable[..., Path]
MODEL = dlrm(tables=3, rows=50, lookups=4, dim=8, dense=5)


@pytest.fixture(scope="module", params=["int32", "int64"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ids are staged as int32 or as requests have them."""
    from recreplay.capture import REWRITES, capture

    out = tmp_path_factory.mktemp("borrow") / "model.rr"
    rewrites = [r for r in REWRITES if r != "narrow_ids" or request.param == "int32"]
    manifest = capture(MODEL, out=out, buckets=[1, 4, 8], compiler="eager", rewrites=rewrites)
    assert {s.dtype for b in manifest.buckets for s in b.inputs[1:]} == {request.param}
    assert {s.dtype for s in manifest.inputs[1:]} == {"int64"}
    return out


@pytest.fixture
def runtime(path: Path) -> Iterator[Runtime]:
    with Runtime.load(path) as loaded:
        yield loaded


def request(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in MODEL.example_inputs(rows, seed).items()}


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8])
def test_scores_are_those_of_run(runtime: Runtime, rows: int) -> None:
    for seed in range(3):  # whatever the requests before have left behind
        values = request(rows, seed)
        want = runtime.run(values)["output"]
        runtime.run(request(8, seed + 10))
        with runtime.borrow(rows) as borrowed:
            assert {k: v.shape for k, v in borrowed.inputs.items()} == {
                k: v.shape for k, v in values.items()
            }
            for name, value in values.items():
                borrowed.inputs[name][:rows] = value
            np.testing.assert_array_equal(borrowed.run()["output"], want)
            np.testing.assert_array_equal(borrowed.run()["output"], want)
    assert runtime.stats()["requests"] == 12
    assert runtime.stats()["rows"] == 9 * rows + 3 * 8


def test_ids_are_checked_in_place(runtime: Runtime) -> None:
    with runtime.borrow(3) as borrowed:
        for name, value in request(3).items():
            borrowed.inputs[name][:] = value
        borrowed.inputs["ids_1"][2, 3] = 50
        with pytest.raises(
            IdRangeError, match=r"input 'ids_1', row 2, position 3: id 50 is out of range"
        ):
            borrowed.run()
        borrowed.inputs["ids_1"][2, 3] = 2**32 + 5
        with pytest.raises(IdRangeError, match=r"'ids_1', row 2, position 3: id 4294967301 is out"):
            borrowed.run()
        borrowed.inputs["ids_1"][2, 3] = 49
        borrowed.run()
    assert runtime.stats()["failed"] == 2


def test_clamping_in_place(path: Path) -> None:
    with Runtime.load(path, check="clamp") as runtime:
        values = request(3)
        with runtime.borrow(3) as borrowed:
            for name, value in values.items():
                borrowed.inputs[name][:] = value
            borrowed.inputs["ids_0"][0, 0] = -5
            borrowed.inputs["ids_1"][1, 0] = 2**32 + 5
            got = borrowed.run()["output"]
        values["ids_0"][0, 0], values["ids_1"][1, 0] = 0, 49
        np.testing.assert_array_equal(got, runtime.run(values)["output"])
        assert runtime.stats()["clamped_ids"] == 2


@pytest.mark.parametrize("rows", [0, -1, 9])
def test_only_what_one_bucket_holds(runtime: Runtime, rows: int) -> None:
    with pytest.raises(BorrowError, match=rf"cannot borrow {rows} rows; expected 1 to 8"):
        runtime.borrow(rows)


def test_results_outlive_the_borrow(runtime: Runtime) -> None:
    values = request(2)
    want = runtime.run(values)["output"].copy()
    with runtime.borrow(2) as borrowed:
        for name, value in values.items():
            borrowed.inputs[name][:] = value
        got = borrowed.run()["output"]
    runtime.run(request(8, 3))
    np.testing.assert_array_equal(got, want)


def test_an_ended_borrow_runs_no_more(runtime: Runtime) -> None:
    with runtime.borrow(1) as borrowed:
        pass
    with pytest.raises(BorrowError, match="this borrow has ended"):
        borrowed.run()


def test_a_thread_does_not_wait_for_itself(runtime: Runtime) -> None:
    with runtime.borrow(1):
        with pytest.raises(BorrowError, match="this thread holds a borrow"):
            runtime.run(request(1))
        with pytest.raises(BorrowError, match="this thread holds a borrow"):
            runtime.borrow(2)
    runtime.run(request(1))


def test_other_threads_wait(runtime: Runtime) -> None:
    values, other, done = request(4), request(4, 9), []
    want = runtime.run(values)["output"]
    thread = Thread(target=lambda: done.append(runtime.run(other)))
    with runtime.borrow(4) as borrowed:
        for name, value in values.items():
            borrowed.inputs[name][:] = value
        thread.start()
        thread.join(0.1)
        assert not done
        np.testing.assert_array_equal(borrowed.run()["output"], want)
    thread.join(10)
    assert len(done) == 1


def test_a_closed_runtime_lends_nothing(path: Path) -> None:
    runtime = Runtime.load(path)
    runtime.close()
    with pytest.raises(RuntimeClosedError), runtime.borrow(1):
        pass


def test_views_are_written_into_and_not_replaced(runtime: Runtime) -> None:
    want = runtime.run(request(2))["output"]
    with runtime.borrow(2) as borrowed:
        for name, value in request(2).items():
            with pytest.raises(BorrowError, match=r"write inputs\[name\]\[:\] = values"):
                borrowed.inputs[name] = value
            borrowed.inputs[name][:] = value
        with pytest.raises(BorrowError, match=r"^inputs of a borrow are memory"):
            borrowed.inputs.update(request(2))
        np.testing.assert_array_equal(borrowed.run()["output"], want)


def test_a_number_of_rows_that_is_none_takes_no_lane(runtime: Runtime) -> None:
    with pytest.raises(BorrowError, match=r"^cannot borrow 2.0 rows; expected a whole number"):
        runtime.borrow(2.0)  # type: ignore[arg-type]
    runtime.run(request(2))
    with runtime.borrow(np.int64(2)) as borrowed:
        assert borrowed.inputs["dense"].shape == (2, 5)


def test_models_by_row_have_neither_values_nor_users(runtime: Runtime) -> None:
    with pytest.raises(BorrowError, match=r"^cannot borrow values of 'ids_0'; jagged inputs are n"):
        runtime.borrow(2, {"ids_0": 3})
    with pytest.raises(BorrowError, match=r"^cannot borrow 2 users; the model has no user side"):
        runtime.borrow(2, users=2)
    values = request(2)
    with runtime.borrow(2, {}) as borrowed:
        for name, value in values.items():
            borrowed.inputs[name][:] = value
        got = borrowed.run()["output"]
    np.testing.assert_array_equal(got, runtime.run(values)["output"])


def test_a_borrow_lends_within_its_block_alone(runtime: Runtime) -> None:
    borrowed = runtime.borrow(2)
    with pytest.raises(BorrowError, match=r"^this borrow has not begun; use it as `with"):
        _ = borrowed.inputs
    with pytest.raises(BorrowError, match=r"^this borrow has not begun"):
        borrowed.run()
    runtime.run(request(2))  # nothing was taken


def test_writers_do_not_wait_for_their_own_borrow(runtime: Runtime) -> None:
    weight = dict(MODEL.named_parameters())["bottom.0.bias"]
    with runtime.borrow(1):
        with pytest.raises(BorrowError, match=r"^this thread holds a borrow"):
            runtime.update_weights({"bottom.0.bias": weight})
        with pytest.raises(BorrowError, match=r"^this thread holds a borrow"):
            runtime.update_rows("tables.0.weight", [0], weight)
    runtime.update_weights({"bottom.0.bias": weight})


def test_closing_ends_the_borrow_of_its_own_thread(path: Path) -> None:
    with Runtime.load(path) as runtime, runtime.borrow(1) as borrowed:
        runtime.close()
        with pytest.raises(BorrowError, match=r"^this borrow has ended"):
            borrowed.run()


def test_a_borrow_that_was_not_ended_is_ended_by_hand(runtime: Runtime) -> None:
    """As where Ctrl-C comes when the block is left."""
    borrowed = runtime.borrow(1).__enter__()
    with pytest.raises(
        BorrowError, match=r"or call its end\(\) where an interrupt came as the blo"
    ):
        runtime.run(request(1))
    borrowed.end()
    borrowed.end()
    runtime.run(request(1))


def test_a_borrow_ends_in_any_thread(runtime: Runtime) -> None:
    borrowed = runtime.borrow(1)
    borrowed.__enter__()
    ending = Thread(target=borrowed.__exit__, args=(None, None, None))
    ending.start()
    ending.join(10)
    with pytest.raises(BorrowError, match=r"^this borrow has ended"):
        borrowed.run()
    runtime.run(request(1))  # neither is this thread a borrower nor the lane lost


def test_a_borrow_that_lost_its_lane_takes_no_other(runtime: Runtime, monkeypatch: Any) -> None:
    def fail(*arguments: object) -> None:
        monkeypatch.undo()  # the lane is proved by the next replay
        raise ReplayError("broken")

    with runtime.borrow(1) as lost:
        monkeypatch.setattr(runtime._replayer, "launch", fail)
        with pytest.raises(ReplayError, match="broken"):
            lost.run()
        with runtime.borrow(1), pytest.raises(BorrowError, match=r"^the lane of this borrow fail"):
            lost.run()
    runtime.run(request(1))
