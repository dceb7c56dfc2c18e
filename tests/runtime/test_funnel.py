"""Funnels: what is left after each stage, against stages that are run one by one by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from everything import captured as capture_everything
from everything import request as everything
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recreplay.capture import capture
from recreplay.runtime import Funnel, Runtime, Serving, Stage
from recreplay.runtime.errors import (
    DeadlineExceeded,
    FunnelError,
    IdRangeError,
    InputError,
    InputNameError,
    InputShapeError,
    Overloaded,
    RuntimeClosedError,
)
from recreplay.runtime.mixed import Divided, Order
from recreplay.runtime.mixed_rows import as_given, pick_rows
from recreplay.runtime.top_rows import best_first, top_rows

Arrays = dict[str, Any]
LARGE_ROWS = 30  # ids of the small model reach further


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.item, self.top = nn.Embedding(50, 4), nn.Linear(6, 1)

    def forward(self, item: Tensor, dense: Tensor) -> Tensor:
        return self.top(torch.cat([self.item(item), dense], 1))


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.item, self.kind = nn.Embedding(50, 8), nn.Embedding(LARGE_ROWS, 8)
        self.top = nn.Linear(18, 2)

    def forward(self, item: Tensor, kind: Tensor, dense: Tensor) -> dict[str, Tensor]:
        x = torch.cat([self.item(item), self.kind(kind), dense], 1)
        click, buy = torch.sigmoid(self.top(x)).unbind(1)
        return {"click": click, "buy": buy, "hidden": x[:, :3]}


def request(rows: int, seed: int = 0) -> Arrays:
    draw = np.random.default_rng(seed)
    return {
        "item": draw.integers(0, 50, rows),
        "kind": draw.integers(0, LARGE_ROWS, rows),
        "dense": draw.standard_normal((rows, 2)).astype(np.float32),
    }


def part(given: Arrays, *names: str) -> Arrays:
    return {name: given[name] for name in names}


def value(outputs: Any) -> Any:
    return outputs["click"] * 0.2 + outputs["buy"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("funnel")
    example = {k: torch.from_numpy(v) for k, v in request(4).items()}
    for name, model in (("small", Small()), ("large", Large())):
        mine = example if name == "large" else part(example, "item", "dense")
        capture(model.eval(), mine, out=folder / name, buckets=[2, 16], compiler="eager")
    return folder / "small", folder / "large"


@pytest.fixture(scope="module")
def loaded(paths: tuple[Path, Path]) -> Iterator[tuple[Runtime, Runtime]]:
    with Runtime.load(paths[0]) as small, Runtime.load(paths[1]) as large:
        yield small, large


def funnel(loaded: tuple[Runtime, Runtime], keep: int, last: int | None) -> Funnel:
    small, large = loaded
    return Funnel([Stage(small, keep), Stage(large, last, value)])


def by_hand(loaded: tuple[Runtime, Runtime], given: Arrays, keep: int, last: int | None) -> Any:
    small, large = loaded
    scores = small.run(part(given, "item", "dense"))["output"][:, 0]
    rows = np.sort(np.argsort(-scores, kind="stable")[:keep])
    outputs = large.run({name: array[rows] for name, array in given.items()})
    order = np.argsort(-value(outputs), kind="stable")[:last]
    return rows[order], {name: array[order] for name, array in outputs.items()}


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    n=st.integers(1, 40),
    keep=st.integers(1, 24),
    last=st.none() | st.integers(1, 24),
    seed=st.integers(0, 99),
)
def test_a_funnel_is_its_stages_one_by_one(
    loaded: tuple[Runtime, Runtime], n: int, keep: int, last: int | None, seed: int
) -> None:
    last = None if last is None else min(last, keep)
    given, made = request(n, seed), funnel(loaded, keep, last)
    rows, outputs = by_hand(loaded, given, keep, last)
    for ranking in (made.run(given), made.submit(given).result(30), asyncio.run(made.arun(given))):
        assert ranking.rows.dtype == np.int64
        np.testing.assert_array_equal(ranking.rows, rows)
        assert list(ranking.outputs) == list(outputs)
        for name, array in outputs.items():
            np.testing.assert_allclose(ranking.outputs[name], array, rtol=1e-5)
        np.testing.assert_allclose(ranking.scores, value(ranking.outputs), rtol=1e-5)
    left_out = 3 * (n <= keep)
    assert made.stats() == {
        "requests": 3,
        "stages": [
            {"rows": 0 if left_out else 3 * n, "left_out": left_out},
            {"rows": 3 * min(n, keep), "left_out": 0},
        ],
    }


def test_lists_and_tensors_are_ranked_as_arrays_are(loaded: tuple[Runtime, Runtime]) -> None:
    given, made = request(9), funnel(loaded, 4, 2)
    other = {**given, "item": given["item"].tolist(), "dense": torch.from_numpy(given["dense"])}
    np.testing.assert_array_equal(made.run(other).rows, made.run(given).rows)


numbers = st.sampled_from([0.0, -0.0, 1.0, -2.5, np.nan, np.inf, -np.inf]) | st.floats(width=32)


@given(st.lists(numbers, min_size=1, max_size=30), st.integers(1, 35))
def test_the_best_rows_are_those_of_a_stable_sort(scores: list[float], keep: int) -> None:
    array = np.array(scores, np.float32)
    ranks = [(True, 0.0) if np.isnan(x) else (False, -float(x)) for x in array]
    best = sorted(range(len(scores)), key=lambda i: (ranks[i], i))[:keep]
    assert best_first(array, keep).tolist() == best
    assert top_rows(array, keep).tolist() == sorted(best)


def test_whole_numbers_are_scores_too() -> None:
    assert best_first(np.array([3, -1, 7, 7], np.int64), 3).tolist() == [2, 3, 0]
    assert best_first(np.array([False, True]), None).tolist() == [1, 0]
    large = np.array([2**53, 2**53 + 1, -(2**63), 2**63 - 1], np.int64)
    assert best_first(large, None).tolist() == [3, 1, 0, 2]
    assert top_rows(large[:2], 1).tolist() == [1]
    assert best_first(np.array([0, 2**64 - 1, 7], np.uint64), 2).tolist() == [1, 2]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    path = capture_everything(tmp_path_factory.mktemp("mixed") / "m.rr", "int64")
    with Runtime.load(path) as runtime:
        yield runtime


few = st.integers(0, 3)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_jagged_rows_are_picked_with_their_values(mixed: Runtime, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    counts = [data.draw(st.lists(few, min_size=size, max_size=size)) for size in (n, n, 2)]
    given = everything(n, 2, (counts[0], counts[1], counts[2]), False, data.draw(few))
    picked = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True)))
    order, checker = Order(mixed.manifest), mixed._replayer.checker
    values, _ = checker.convert(checker.check(given)[0])
    assert isinstance(values, Divided)
    some = as_given(order, pick_rows(order, values, picked))
    names = [spec.name for spec in order.specs]
    got = mixed.run(dict(zip(names, some, strict=True)))["output"]
    np.testing.assert_allclose(got, mixed.run(given)["output"][picked], rtol=1e-5, atol=1e-6)


def test_a_funnel_of_jagged_requests_with_users(mixed: Runtime) -> None:
    made = Funnel([Stage(mixed, 4, lambda out: -out["output"][:, 0]), Stage(mixed, 2, second)])
    given = everything(6, 3, ([1, 0, 3, 2, 0, 1], [2, 0, 1, 1, 3, 0], [1, 0, 2]), False, 8)
    outputs = mixed.run(given)["output"]
    kept = np.sort(np.argsort(outputs[:, 0], kind="stable")[:4])
    best = kept[np.argsort(-outputs[kept, 1], kind="stable")[:2]]
    for ranking in (made.run(given), made.submit(given).result(30)):
        np.testing.assert_array_equal(ranking.rows, best)
        np.testing.assert_allclose(ranking.outputs["output"], outputs[best], rtol=1e-5)


def second(outputs: Any) -> Any:
    return outputs["output"][:, 1]


def test_stages_that_do_not_go_together_are_refused(
    loaded: tuple[Runtime, Runtime], mixed: Runtime
) -> None:
    small, large = loaded
    wrong: list[tuple[list[Stage], str]] = [
        ([], r"^a funnel has one stage or more; got none$"),
        ([Stage(small), Stage(small)], r"^stage 1 keeps None rows; expected a whole number, 1 or"),
        ([Stage(small, 0)], r"^stage 1 keeps 0 rows; expected a whole number, 1 or more$"),
        ([Stage(small, True)], r"^stage 1 keeps True rows; expected a whole number"),
        ([Stage(small, 2), Stage(small, 3)], r"^stage 2 keeps 3 rows, and the stage before it 2;"),
        ([Stage(large)], r"^stage 1 says no score; its outputs are click, buy, hidden$"),
        ([Stage(large, score="sale")], r"^stage 1 is to be ranked by 'sale'; its outputs are cli"),
        ([Stage(large, score="hidden")], r"^stage 1 is to be ranked by 'hidden', of which a row h"),
        (
            [Stage(small, 2), Stage(mixed, score=second)],
            r"^input 'item' is int64\[n, 3\] in stage 2 and int64\[n\] in one before it; inputs of",
        ),
    ]
    for stages, message in wrong:
        with pytest.raises(FunnelError, match=message):
            Funnel(stages)


def test_wrong_requests_are_told_of_before_anything_runs(loaded: tuple[Runtime, Runtime]) -> None:
    made, given = funnel(loaded, 2, 1), request(5)
    wrong: list[tuple[Any, type[InputError], str]] = [
        (part(given, "item", "dense"), InputNameError, "^inputs do not match the model: missing k"),
        ({**given, "kind": given["kind"][:3]}, InputShapeError, "^input 'kind' has 3 rows, but in"),
        ({**given, "kind": given["kind"][:, None]}, InputShapeError, r"^input 'kind' has shape \("),
    ]
    before = loaded[0].stats()["requests"]
    for values, error, message in wrong:
        with pytest.raises(error, match=message):
            made.run(values)
        with pytest.raises(error, match=message):
            made.submit(values).result(10)
    assert loaded[0].stats()["requests"] == before


def test_a_wrong_id_is_told_of_by_its_row_of_the_request(loaded: tuple[Runtime, Runtime]) -> None:
    made, given = funnel(loaded, 3, 1), request(8, 4)
    best = np.argsort(-loaded[0].run(part(given, "item", "dense"))["output"][:, 0])[:3]
    row, place = int(np.sort(best)[1]), 1
    given["kind"][row] = 30
    message = (
        rf"^input 'kind', row {place}: id 30 is out of range; table 'kind.weight' has 30 rows, so "
        rf"ids are 0 to 29; that is row {row} of the request, in stage 2 of 2$"
    )
    for ask in (made.run, lambda given: made.submit(given).result(10)):
        with pytest.raises(IdRangeError, match=message) as raised:
            ask(given)
        assert raised.value.row == row
    given["kind"][row] = 0
    given["item"][2] = 50
    with pytest.raises(IdRangeError, match=r"^input 'item', row 2: id 50 .* 0 to 49$"):
        made.run(given)


def test_a_score_has_a_number_for_each_row(loaded: tuple[Runtime, Runtime]) -> None:
    made = Funnel([Stage(loaded[1], 2, lambda outputs: outputs["hidden"])])
    message = r"^the score of stage 1 gave shape \(5, 3\); expected \(5,\), a number for each row$"
    for ask in (made.run, lambda given: made.submit(given).result(10)):
        with pytest.raises(FunnelError, match=message):
            ask(request(5))


def test_queues_of_stages_refuse_as_theirs_do(paths: tuple[Path, Path]) -> None:
    tight = Serving(max_queue=1)
    with Runtime.load(paths[0]) as small, Runtime.load(paths[1], serving=tight) as large:
        made = Funnel([Stage(small, 2), Stage(large, 1, value)])
        lane = large._lanes.take()
        futures = [made.submit(request(5, seed)) for seed in range(8)]
        time.sleep(0.3)  # what the second stage cannot hold is refused meanwhile
        large._lanes.put(lane)
        failed = [f for f in futures if isinstance(f.exception(30), Overloaded)]
        assert 0 < len(failed) < 8
        lane = small._lanes.take()
        made.submit(request(5))  # the lane's thread has it
        time.sleep(0.05)
        waiting = made.submit(request(5), deadline_us=50_000)
        time.sleep(0.2)
        small._lanes.put(lane)
        with pytest.raises(DeadlineExceeded):
            waiting.result(30)


def test_what_nobody_waits_for_is_not_ranked(loaded: tuple[Runtime, Runtime]) -> None:
    small, _ = loaded
    made = funnel(loaded, 2, 1)
    lane = small._lanes.take()
    first = made.submit(request(5))
    time.sleep(0.05)
    second = made.submit(request(5))
    assert second.cancel()
    before = small.stats()["requests"]
    small._lanes.put(lane)
    assert len(first.result(30).rows) == 1
    with pytest.raises(CancelledError):
        second.result(1)
    small.submit(part(request(3), "item", "dense")).result(30)
    assert small.stats()["requests"] - before == 2


def test_closing_answers_what_was_submitted(paths: tuple[Path, Path]) -> None:
    """Before the stages are closed, the last of them first."""
    with (
        Runtime.load(paths[0]) as small,
        Runtime.load(paths[1]) as large,
        Funnel([Stage(small, 3), Stage(large, 2, value)]) as made,
    ):
        futures = [made.submit(request(30, seed)) for seed in range(40)]
        with pytest.raises(InputNameError):
            made.submit({}).result(10)
    assert all(len(future.result(0).rows) == 2 for future in futures)
    for ask in (made.run, made.submit):
        with pytest.raises(RuntimeClosedError, match=r"^this Funnel was closed$"):
            ask(request(3))
