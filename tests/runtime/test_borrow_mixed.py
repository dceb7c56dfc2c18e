"""Borrowed memory of models with a user side and jagged values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from everything import CAPACITY, SIZE, USERS, Arrays, captured, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recreplay.runtime import Runtime
from recreplay.runtime.borrow import Borrow
from recreplay.runtime.errors import BorrowError, IdRangeError, InputError

few = st.integers(0, 5)
GIVEN = request(4, 2, ([2, 0, 3, 2], [1, 2, 0, 1], [2, 3]), False, 5)
JAGGED = ("clicks", "weights", "tags", "seen")


@pytest.fixture(scope="module", params=["int32", "int64"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Int64 ids are staged as int32 or as they come."""
    return captured(tmp_path_factory.mktemp("mixed") / "m.rr", request.param)


@pytest.fixture(scope="module")
def shared(path: Path) -> Iterator[Runtime]:
    with Runtime.load(path) as loaded:
        yield loaded


@pytest.fixture
def runtime(path: Path) -> Iterator[Runtime]:
    with Runtime.load(path) as loaded:
        yield loaded


def borrow(runtime: Runtime, values: Arrays) -> Borrow:
    counts = {name: len(values[name]) for name in JAGGED}
    return runtime.borrow(len(values["lengths"]), counts, users=len(values["user"]))


def write(borrowed: Borrow, values: Arrays) -> None:
    for name, value in values.items():
        borrowed.inputs[name][:] = value


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_scores_are_those_of_run(shared: Runtime, data: st.DataObject) -> None:
    n, m = data.draw(st.integers(1, SIZE)), data.draw(st.integers(1, USERS))
    clicks, tags = (data.draw(st.lists(few, min_size=n, max_size=n)) for _ in range(2))
    seen = data.draw(st.lists(few, min_size=m, max_size=m))
    values = request(n, m, (clicks, tags, seen), data.draw(st.booleans()), data.draw(few))
    most = CAPACITY * SIZE, CAPACITY * USERS
    if max(sum(clicks), sum(tags)) > most[0] or sum(seen) > most[1]:
        with pytest.raises(BorrowError, match=r"^cannot borrow \d+ values of "):
            borrow(shared, values)
        return
    want = shared.run(values)["output"]
    with borrow(shared, values) as borrowed:
        assert {k: v.shape for k, v in borrowed.inputs.items()} == {
            k: v.shape for k, v in values.items()
        }
        write(borrowed, values)
        for _ in range(2):
            np.testing.assert_array_equal(borrowed.run()["output"], want)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("item", (1, 2), 30),
        ("user", 1, -1),
        ("clicks", 2, 30),
        ("seen", 0, -4),
        ("user_index", 3, 2),
        ("offsets", 2, 1),
        ("offsets", -1, 6),
        ("starts", 1, 99),
        ("lengths", 0, 5),
    ],
)
def test_what_is_wrong_is_said_as_run_says_it(
    runtime: Runtime, name: str, place: Any, value: int
) -> None:
    wrong = GIVEN | {name: GIVEN[name].copy()}
    wrong[name][place] = value
    with pytest.raises(InputError) as said:
        runtime.run(wrong)
    with borrow(runtime, GIVEN) as borrowed:
        write(borrowed, wrong)
        with pytest.raises(type(said.value), match=f"^{re.escape(str(said.value))}$"):
            borrowed.run()
        write(borrowed, GIVEN)
        got = borrowed.run()["output"]
    np.testing.assert_array_equal(got, runtime.run(GIVEN)["output"])
    assert runtime.stats()["failed"] == 2


def test_ids_that_would_become_others_are_no_ids(runtime: Runtime) -> None:
    for name in ("item", "clicks", "user", "seen"):
        with borrow(runtime, GIVEN) as borrowed:
            write(borrowed, GIVEN)
            borrowed.inputs[name][-1] = 2**32 + 5
            with pytest.raises(IdRangeError, match=rf"^input '{name}', row .*id 4294967301 is out"):
                borrowed.run()


def test_ids_are_clamped(path: Path) -> None:
    wrong = {name: value.copy() for name, value in GIVEN.items()}
    wrong["item"][1, 2], wrong["clicks"][2], wrong["user_index"][3] = -7, 99, 9
    with Runtime.load(path, check="clamp") as runtime:
        want = runtime.run(wrong)["output"]
        with borrow(runtime, wrong) as borrowed:
            write(borrowed, wrong)
            np.testing.assert_array_equal(borrowed.run()["output"], want)
        assert runtime.stats()["clamped_ids"] == 6


def test_values_that_need_room_move_to_a_larger_bucket_and_are_counted(runtime: Runtime) -> None:
    for clicks, moves in ((2 * CAPACITY, 0), (2 * CAPACITY + 1, 1)):
        values = request(2, 1, ([0, clicks], [1, 1], [1]), True, 0)
        want = runtime.run(values)["output"]
        before = runtime.stats()
        with borrow(runtime, values) as borrowed:
            write(borrowed, values)
            np.testing.assert_array_equal(borrowed.run()["output"], want)
        after = runtime.stats()
        assert after["capacity_moves"] - before["capacity_moves"] == moves
        assert after["rows"] - before["rows"] == 2


ALL = {"clicks": 2, "weights": 2, "tags": 2, "seen": 2}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((SIZE + 1, ALL, 1), "cannot borrow 7 rows; expected 1 to 6, the largest bucket"),
        ((2, ALL, 4), "cannot borrow 4 users; the model was captured for requests of 1 to 3"),
        ((2, ALL, 0), "cannot borrow 0 users; "),
        ((2, ALL, 1.0), "cannot borrow 1.0 users; expected a whole number"),
        (
            (2,),
            "a borrow says how many values each jagged input has; missing clicks, weights, tags, "
            "seen; write borrow(n, {'clicks': 100, ...})",
        ),
        ((2, {"clicks": 2, "weights": 2, "tags": 2}), "a borrow says how many .* missing seen;"),
        (
            (2, ALL | {"item": 3}),
            "cannot borrow values of 'item'; jagged inputs are clicks, weights, tags, seen",
        ),
        ((2, ALL | {"tags": "2"}), "cannot borrow '2' values of 'tags'; expected a whole number"),
        (
            (2, ALL | {"weights": 3}),
            "cannot borrow 3 values of 'weights' and 2 of 'clicks'; input 'offsets' divides both",
        ),
        (
            (2, ALL | {"tags": 25}),
            "cannot borrow 25 values of 'tags'; expected 0 to 24, the room of the largest bucket; "
            "send fewer, or capture with a capacity above 4",
        ),
        ((2, ALL | {"tags": -1}), "cannot borrow -1 values of 'tags'; expected 0 to 24"),
        (
            (2, ALL | {"seen": 13}),
            "cannot borrow 13 values of 'seen'; expected 0 to 12, the room of a request's users",
        ),
    ],
)
def test_only_what_there_is_room_for(
    shared: Runtime, arguments: tuple[Any, ...], problem: str
) -> None:
    pattern = problem if ".*" in problem else re.escape(problem)
    with pytest.raises(BorrowError, match=f"^{pattern}"):
        shared.borrow(*arguments)
    shared.run(GIVEN)  # nothing was taken
