"""Requests with a user side and jagged values: equal to eager for any lengths, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recreplay.capture import Jagged, capture
from recreplay.runtime import Runtime
from recreplay.runtime.errors import (
    CapacityError,
    EmptyBatchError,
    IdRangeError,
    InputDtypeError,
    InputNameError,
    InputShapeError,
    OffsetsError,
    ReplayError,
)

Arrays = dict[str, Any]
MANY = settings(
    max_examples=5000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
BUCKETS = (1, 3, 8)
CAPACITY = 4


class Feed(nn.Module):
    """One user a request; clicks with weights per candidate, as offsets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.user = nn.Embedding(20, 8)
        self.seen = nn.Embedding(30, 8)
        self.item = nn.Embedding(40, 8)
        self.clicks = nn.Embedding(25, 8)
        self.tower = nn.Linear(16, 8)
        self.top = nn.Linear(35, 2)

    def forward(
        self,
        user: Tensor,
        seen: Tensor,
        item: Tensor,
        dense: Tensor,
        clicks: Tensor,
        weights: Tensor,
        offsets: Tensor,
    ) -> dict[str, Tensor]:
        tower = self.tower(torch.cat([self.user(user), self.seen(seen).sum(1)], 1)).relu()
        weighed = F.embedding_bag(
            clicks,
            self.clicks.weight,
            offsets,
            mode="sum",
            per_sample_weights=weights.sigmoid(),
            include_last_offset=True,
        )
        mean = F.embedding_bag(clicks, self.clicks.weight, offsets[:-1], mode="mean")
        count = (offsets[1:] - offsets[:-1]).to(dense.dtype).unsqueeze(1)
        item = self.item(item)
        parts = [tower, item * tower, weighed, mean, dense, count]
        return {"score": self.top(torch.cat(parts, 1)), "tower": tower}


class Market(nn.Module):
    """Several users a request, each with a history; tags per candidate; lengths and starts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(12)
        self.user = nn.Embedding(20, 8)
        self.history = nn.EmbeddingBag(30, 8, mode="mean")
        self.tags = nn.EmbeddingBag(25, 8, mode="max")
        self.item = nn.Embedding(40, 8)
        self.tower = nn.Linear(16, 8)
        self.top = nn.Linear(24, 3)

    def forward(
        self,
        user: Tensor,
        history: Tensor,
        lengths: Tensor,
        item: Tensor,
        tags: Tensor,
        starts: Tensor,
    ) -> Tensor:
        begin = lengths.cumsum(0) - lengths
        parts = [self.user(user), self.history(history, begin)]
        tower = self.tower(torch.cat(parts, 1)).relu()
        return self.top(torch.cat([tower, self.item(item), self.tags(tags, starts)], 1))


def cuts(lengths: Any) -> Any:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def feed_request(lengths: list[int], seed: int = 0) -> Arrays:
    draw = np.random.default_rng(seed)
    n, total = len(lengths), sum(lengths)
    return {
        "user": draw.integers(0, 20, 1),
        "seen": draw.integers(0, 30, (1, 3)),
        "item": draw.integers(0, 40, n),
        "dense": draw.standard_normal((n, 2)).astype(np.float32),
        "clicks": draw.integers(0, 25, total).astype(np.int32),
        "weights": draw.standard_normal(total).astype(np.float32),
        "offsets": cuts(lengths),
    }


def feed_tiled(request: Arrays) -> Arrays:
    """What the model itself takes."""
    n = len(request["item"])
    return {**request, **{k: np.repeat(request[k], n, axis=0) for k in ("user", "seen")}}


def market_request(lengths: list[int], users: list[int], seed: int = 0) -> Arrays:
    draw = np.random.default_rng(seed)
    n, m = len(lengths), len(users)
    return {
        "user": draw.integers(0, 20, m),
        "history": draw.integers(0, 30, sum(users)),
        "lengths": np.array(users),
        "item": draw.integers(0, 40, n).astype(np.int32),
        "tags": draw.integers(0, 25, sum(lengths)),
        "starts": cuts(lengths)[:-1],
        "user_index": draw.integers(0, m, n),
    }


def market_tiled(request: Arrays) -> Arrays:
    index, ends = request["user_index"], cuts(request["lengths"])
    pieces = [request["history"][ends[i] : ends[i + 1]] for i in index]
    tiled = {k: v for k, v in request.items() if k != "user_index"}
    return {
        **tiled,
        "user": request["user"][index],
        "history": np.concatenate(pieces),
        "lengths": request["lengths"][index],
    }


def eager(model: nn.Module, tiled: Arrays) -> Arrays:
    with torch.inference_mode():
        out = model(**{k: torch.from_numpy(v) for k, v in tiled.items()})
    return {k: v.numpy() for k, v in (out if isinstance(out, dict) else {"output": out}).items()}


def agree(got: Arrays, expected: Arrays) -> None:
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        assert got[name].dtype == value.dtype
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


def example(tiled: Arrays) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in tiled.items()}


@pytest.fixture(scope="module")
def feed() -> Feed:
    return Feed().eval()


@pytest.fixture(scope="module")
def feed_path(feed: Feed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("feed") / "feed.rr"
    capture(
        feed,
        example(feed_tiled(feed_request([2, 0, 3, 1]))),
        out=out,
        buckets=BUCKETS,
        compiler="eager",
        user_inputs=["user", "seen"],
        jagged=[
            Jagged("clicks", offsets="offsets", capacity=CAPACITY),
            Jagged("weights", offsets="offsets"),
        ],
    )
    return out


@pytest.fixture(scope="module")
def feed_runtime(feed_path: Path) -> Iterator[Runtime]:
    with Runtime.load(feed_path) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def market() -> Market:
    return Market().eval()


@pytest.fixture(scope="module")
def market_path(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("market") / "market.rr"
    capture(
        market,
        example(market_tiled(market_request([2, 0, 3, 1], [2, 1, 3]))),
        out=out,
        buckets=BUCKETS,
        compiler="eager",
        user_inputs=["user", "history", "lengths"],
        users=3,
        jagged=[
            Jagged("history", lengths="lengths", capacity=5),
            Jagged("tags", offsets="starts", capacity=CAPACITY),
        ],
    )
    return out


@pytest.fixture(scope="module")
def market_runtime(market_path: Path) -> Iterator[Runtime]:
    with Runtime.load(market_path) as runtime:
        yield runtime


# Any lengths

LARGEST = CAPACITY * BUCKETS[-1]
rows_of_values = st.one_of(
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.lists(st.sampled_from([0, CAPACITY, LARGEST]), min_size=1, max_size=5),
)


@MANY
@given(lengths=rows_of_values, seed=st.integers(0, 2**31))
def test_one_user_and_offsets_equal_eager(
    feed: Feed, feed_runtime: Runtime, lengths: list[int], seed: int
) -> None:
    request = feed_request(lengths, seed)
    agree(feed_runtime.run(request), eager(feed, feed_tiled(request)))


@MANY
@given(
    lengths=rows_of_values,
    users=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_several_users_lengths_and_starts_equal_eager(
    market: Market, market_runtime: Runtime, lengths: list[int], users: list[int], seed: int
) -> None:
    request = market_request(lengths, users, seed)
    agree(market_runtime.run(request), eager(market, market_tiled(request)))


# Overflow


@pytest.mark.parametrize(
    ("lengths", "replays", "moves", "splits"),
    [
        ([CAPACITY], {1: 1}, 0, 0),  # exactly full
        ([CAPACITY + 1], {3: 1}, 1, 0),
        ([0], {1: 1}, 0, 0),
        ([CAPACITY] * 3, {3: 1}, 0, 0),
        ([CAPACITY * 3, 0, 1], {8: 1}, 1, 0),
        ([LARGEST], {8: 1}, 1, 0),
        ([LARGEST, 1], {8: 1, 1: 1}, 1, 1),
        ([1, LARGEST, 1], {1: 2, 8: 1}, 1, 1),
        ([CAPACITY] * 8 + [1], {8: 1, 1: 1}, 0, 0),  # split for its rows
        ([0] * 20, {8: 3}, 0, 0),
        ([CAPACITY + 1] * 16, {8: 3}, 0, 1),
    ],
)
def test_overflow_is_counted(
    feed: Feed,
    feed_path: Path,
    lengths: list[int],
    replays: dict[int, int],
    moves: int,
    splits: int,
) -> None:
    request = feed_request(lengths)
    with Runtime.load(feed_path) as runtime:
        agree(runtime.run(request), eager(feed, feed_tiled(request)))
        stats = runtime.stats()
    assert stats["replays"] == dict(sorted(replays.items()))
    assert (stats["capacity_moves"], stats["capacity_splits"]) == (moves, splits)
    assert stats["split_requests"] == (sum(replays.values()) > 1)
    assert stats["rows"] == len(lengths)


# Refusals


def feed_with(**changes: Any) -> Arrays:
    return {**feed_request([2, 0, 3]), **changes}


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        (
            {"offsets": np.array([1, 2, 2, 5])},
            OffsetsError,
            "input 'offsets' begins with 1; offsets begin with 0",
        ),
        (
            {"offsets": np.array([0, 3, 2, 5])},
            OffsetsError,
            "input 'offsets', row 2: offset 2 after 3; offsets never fall",
        ),
        (
            {"offsets": np.array([0, 2, -1, 5])},
            OffsetsError,
            "input 'offsets', row 2: offset -1 after 2; offsets never fall",
        ),
        (
            {"offsets": np.array([0, 2, 7, 5])},
            OffsetsError,
            "input 'offsets', row 2: offset 7, but input 'clicks' has 5 values; an offset is at "
            "most their number",
        ),
        (
            {"offsets": np.array([0, 2, 2, 6])},
            OffsetsError,
            "input 'offsets' ends with 6, but input 'clicks' has 5 values; the last offset is the "
            "number of values",
        ),
        (
            {"offsets": np.array([0, 2, 5])},
            InputShapeError,
            "input 'offsets' has 2 rows, but input 'item' has 3; all inputs of a request need the "
            "same number of rows",
        ),
        (
            {"offsets": np.zeros(0, np.int64)},
            InputShapeError,
            "input 'offsets' has -1 rows, but input 'item' has 3; all inputs of a request need the "
            "same number of rows",
        ),
        (
            {"offsets": np.array([0.0, 2, 2, 5])},
            InputDtypeError,
            "input 'offsets' has dtype float64; expected int64, or one that widens to it without "
            "loss; convert it with .astype('int64')",
        ),
        (
            {"weights": np.zeros(4, np.float32)},
            InputShapeError,
            "input 'weights' has 4 values, but input 'clicks' has 5; input 'offsets' divides both",
        ),
        (
            {"clicks": np.zeros((5, 1), np.int32)},
            InputShapeError,
            "input 'clicks' has shape (5, 1); expected int32[N]",
        ),
        (
            {"clicks": np.array([0, 1, 2, 25, 4], np.int32)},
            IdRangeError,
            "input 'clicks', row 2, position 1: id 25 is out of range; table 'clicks.weight' has "
            "25 rows, so ids are 0 to 24",
        ),
        (
            {"clicks": np.array([0, -1, 2, 5, 4], np.int32)},
            IdRangeError,
            "input 'clicks', row 0, position 1: id -1 is out of range; table 'clicks.weight' has "
            "25 rows, so ids are 0 to 24",
        ),
        (
            {"clicks": np.array([0, 1, 2, 3, 2**32 + 4])},
            IdRangeError,
            "input 'clicks', item 4: id 4294967300 is out of range; table 'clicks.weight' has 25 "
            "rows, so ids are 0 to 24",
        ),
        (
            {"user": np.array([1, 2])},
            InputShapeError,
            "input 'seen' has 1 rows, but input 'user' has 2; all user inputs need the same number "
            "of users",
        ),
        (
            {"user": np.array([1, 2, 3]), "seen": np.zeros((3, 3), np.int64)},
            InputShapeError,
            "input 'user' has 3 rows; it is a user input, which all rows of a request share, so "
            "expected 1",
        ),
        (
            {"user": np.array([20])},
            IdRangeError,
            "input 'user', row 0: id 20 is out of range; table 'user.weight' has 20 rows, so ids "
            "are 0 to 19",
        ),
        (
            {"extra": np.zeros(3)},
            InputNameError,
            "inputs do not match the model: unknown extra; expected item, dense, user, seen, "
            "offsets, clicks, weights",
        ),
    ],
)
def test_wrong_requests_are_refused(
    feed: Feed, feed_runtime: Runtime, changes: Arrays, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        feed_runtime.run(feed_with(**changes))
    good = feed_with()
    agree(feed_runtime.run(good), eager(feed, feed_tiled(good)))


def market_with(**changes: Any) -> Arrays:
    return {**market_request([2, 0, 3], [1, 2]), **changes}


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        (
            {"lengths": np.array([4, -1])},
            OffsetsError,
            "input 'lengths', row 1: length -1; expected 0 or more",
        ),
        (
            {"lengths": np.array([1, 3])},
            OffsetsError,
            "input 'lengths' adds up to 4, but input 'history' has 3 values; the lengths of all "
            "rows add up to the number of values",
        ),
        (
            {"lengths": np.array([2**62, 2**62])},
            OffsetsError,
            "input 'lengths' adds up to 9223372036854775808, but input 'history' has 3 values; the "
            "lengths of all rows add up to the number of values",
        ),
        (
            {"starts": np.array([0, 2, 6])},
            OffsetsError,
            "input 'starts', row 2: offset 6, but input 'tags' has 5 values; an offset is at most "
            "their number",
        ),
        (
            {"user_index": np.array([0, 1, 2])},
            IdRangeError,
            "input 'user_index', row 2: user 2 is out of range; the request has 2 users, so it is "
            "0 to 1",
        ),
        (
            {"user": np.zeros(4, int), "lengths": np.array([3, 0, 0, 0])},
            InputShapeError,
            "input 'user' has 4 rows; the model was captured for requests of 1 to 3 users",
        ),
        (
            {"lengths": np.array([10, 6]), "history": np.zeros(16, int)},
            CapacityError,
            "input 'history' has 16 values for the users of the request; there is room for 15; "
            "send fewer, or capture with a capacity above 5 a user",
        ),
        (
            {"tags": np.zeros(34, int), "starts": np.array([0, 1, 34])},
            CapacityError,
            "input 'tags', row 1 has 33 values; the largest bucket, of 8 rows, holds 32; send "
            "fewer, or capture with a capacity above 4 a row",
        ),
    ],
)
def test_wrong_requests_of_several_users_are_refused(
    market: Market, market_runtime: Runtime, changes: Arrays, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        market_runtime.run(market_with(**changes))
    good = market_with()
    agree(market_runtime.run(good), eager(market, market_tiled(good)))


def test_no_rows(feed_runtime: Runtime) -> None:
    with pytest.raises(EmptyBatchError, match=r"^the request has no rows; expected 1 or more$"):
        feed_runtime.run(feed_request([]))


def test_errors_of_a_part_speak_of_the_whole_request(feed_runtime: Runtime) -> None:
    request = feed_request([1] * 20)
    request["clicks"][17] = 99
    with pytest.raises(IdRangeError, match=r"^input 'clicks', row 17, position 0: id 99 is"):
        feed_runtime.run(request)


# What else a request may be


def test_clamping(feed: Feed, feed_path: Path, market: Market, market_path: Path) -> None:
    with Runtime.load(feed_path, check="clamp") as runtime:
        request = feed_with(clicks=np.array([0, -1, 2**40, 25, 4]), user=np.array([77]))
        nearest = feed_with(clicks=np.array([0, 0, 24, 24, 4], np.int32), user=np.array([19]))
        agree(runtime.run(request), eager(feed, feed_tiled(nearest)))
        assert runtime.stats()["clamped_ids"] == 4
    with Runtime.load(market_path, check="clamp") as runtime:
        agree(
            runtime.run(market_with(user_index=np.array([0, 9, -1]))),
            eager(market, market_tiled(market_with(user_index=np.array([0, 1, 0])))),
        )
        assert runtime.stats()["clamped_ids"] == 2


def test_offsets_are_checked_whatever_else_is_not(feed_path: Path) -> None:
    with Runtime.load(feed_path, check="off") as runtime:
        with pytest.raises(OffsetsError, match="never fall"):
            runtime.run(feed_with(offsets=np.array([0, 3, 2, 5])))
        with pytest.raises(ReplayError, match="bucket 3 failed"):
            runtime.run(feed_with(clicks=np.array([0, 1, 2, 99, 4], np.int32)))
        with pytest.raises(IdRangeError, match="id 4294967296 is out of range"):
            runtime.run(feed_with(clicks=np.array([0, 1, 2, 2**32, 4])))


def test_anything_array_like(feed: Feed, feed_runtime: Runtime) -> None:
    request = feed_with()
    expected = eager(feed, feed_tiled(request))
    agree(feed_runtime.run({k: torch.from_numpy(v) for k, v in request.items()}), expected)
    lists = {k: v.tolist() for k, v in request.items() if k not in ("dense", "weights")}
    agree(feed_runtime.run({**request, **lists}), expected)
    agree(feed_runtime.run({**request, "offsets": request["offsets"].astype(np.int32)}), expected)
    empty = feed_request([0, 0])
    agree(feed_runtime.run({**empty, "clicks": []}), eager(feed, feed_tiled(empty)))


def test_a_caller_may_change_its_offsets_afterwards(feed: Feed, feed_runtime: Runtime) -> None:
    request = feed_with()
    expected = eager(feed, feed_tiled(request))
    got = feed_runtime.run(request)
    request["offsets"][:] = 999
    agree(got, expected)
