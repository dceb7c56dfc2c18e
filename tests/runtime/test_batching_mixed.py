"""Packs and pieces of requests with a user side and jagged values: all are answered as alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from everything import CAPACITY, SIZE, USERS, Arrays, captured, request
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recreplay.capture import Jagged
from recreplay.runtime import Runtime
from recreplay.runtime.batching import PackError, Piece
from recreplay.runtime.errors import (
    CapacityError,
    IdRangeError,
    InputError,
    InputShapeError,
    OffsetsError,
    RecReplayError,
)
from recreplay.runtime.mixed_batching import MixedBatching, _index
from recreplay.runtime.promises import ThreadPromise
from recreplay.runtime.serving import Serving
from recreplay.runtime.waiting import Reply, Ticket, WaitingLine

few = st.integers(0, 3)


def test_numbers_that_are_moved_do_not_wrap_around() -> None:
    """Users and values before a request in a pack may be more than its own dtype counts."""
    packed = _index(
        [np.array([0, 1], np.int8), np.array([0, 0], np.int8)],
        np.array([2, 2]),
        np.array([256, 1]),
    )
    np.testing.assert_array_equal(packed, [0, 1, 256, 256])
    assert packed.dtype == np.int64


@pytest.fixture(scope="module", params=["int32", "int64"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Int64 ids are staged as int32 or as they come."""
    return captured(tmp_path_factory.mktemp("mixed") / "m.rr", request.param)


@pytest.fixture(scope="module")
def runtime(path: Path) -> Iterator[Runtime]:
    """Requests wait for others of their pack."""
    with Runtime.load(path, serving=Serving(max_delay_us=50_000)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def batching(runtime: Runtime) -> MixedBatching:
    return MixedBatching(runtime.manifest, 99, None, runtime._replayer.checker.convert)


@st.composite
def requests(draw: st.DrawFn) -> Arrays:
    n, m = draw(st.integers(1, 4)), draw(st.integers(1, USERS))
    clicks, tags = (draw(st.lists(few, min_size=n, max_size=n)) for _ in range(2))
    seen = draw(st.lists(few, min_size=m, max_size=m))
    return request(n, m, (clicks, tags, seen), False, draw(st.integers(0, 99)))


def alone(runtime: Runtime, given: Arrays) -> Any:
    return runtime.run(given)["output"]


def in_order(runtime: Runtime, given: Arrays) -> tuple[Any, ...]:
    values, _ = runtime._replayer.checker.check(given)
    return tuple(values)


def same(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(several=st.lists(requests(), min_size=1, max_size=5))
def test_a_pack_is_a_request_of_all_rows(
    runtime: Runtime, batching: MixedBatching, several: list[Arrays]
) -> None:
    given_values = [in_order(runtime, r) for r in several]
    sizes = [len(r["dense"]) for r in several]
    alone_each = [batching.pieces(v, n)[0] for v, n in zip(given_values, sizes, strict=True)]
    packed = batching.pack(alone_each)
    [piece] = batching.pieces(packed, sum(sizes))
    assert piece.takes == tuple(map(sum, zip(*(p.takes for p in alone_each), strict=True)))
    assert piece.takes[:2] == (sum(sizes), sum(len(r["user"]) for r in several))
    users, seen = (sum(len(r[name]) for r in several) for name in ("user", "seen"))
    if users > USERS or seen > CAPACITY * USERS:
        return  # more than one replay takes; the queue packs none such
    outputs = runtime._answer(packed, sum(sizes))["output"]
    for (start, stop), one in zip(pairwise(accumulate(sizes, initial=0)), several, strict=True):
        same(outputs[start:stop], alone(runtime, one))


@settings(max_examples=100, deadline=None)
@given(whole=requests(), chunk=st.integers(1, 5))
def test_pieces_are_requests_of_their_rows(runtime: Runtime, whole: Arrays, chunk: int) -> None:
    batching = MixedBatching(runtime.manifest, 99, chunk, runtime._replayer.checker.convert)
    n = len(whole["dense"])
    pieces = batching.pieces(in_order(runtime, whole), n)
    rows = [piece.takes[0] for piece in pieces]
    assert rows == [min(chunk, n - at) for at in range(0, n, chunk)]
    parts = [runtime._answer(p.values, p.takes[0])["output"] for p in pieces]
    same(np.concatenate(parts), alone(runtime, whole))


def submitted(runtime: Runtime, several: Sequence[Arrays]) -> list[Future[Any]]:
    """All of them wait before the first is taken."""
    lane = runtime._lanes.take()
    futures = [runtime.submit(r) for r in several]
    runtime._lanes.put(lane)
    return futures


def plain(seed: int, wide: bool = False) -> Arrays:
    """Two rows of one user."""
    return request(2, 1, ([1, 2], [1, 0], [3]), wide, seed)


def test_requests_that_wait_become_one_replay(runtime: Runtime) -> None:
    several = [plain(seed) for seed in range(3)]
    wanted = [alone(runtime, r) for r in several]
    before = runtime.stats()
    for future, want in zip(submitted(runtime, several), wanted, strict=True):
        same(future.result(30)["output"], want)
    after = runtime.stats()
    assert after["queue"]["packed"] - before["queue"]["packed"] == 3
    assert sum(after["replays"].values()) - sum(before["replays"].values()) == 1
    assert after["requests"] - before["requests"] == 3


def test_packs_hold_no_more_users_than_a_request_may(runtime: Runtime) -> None:
    several = [request(1, 1, ([1], [1], [2]), False, seed) for seed in range(5)]
    wanted = [alone(runtime, r) for r in several]
    before = runtime.stats()
    for future, want in zip(submitted(runtime, several), wanted, strict=True):
        same(future.result(30)["output"], want)
    after = runtime.stats()
    assert after["queue"]["packed"] - before["queue"]["packed"] == 5  # three and two of them
    assert sum(after["replays"].values()) - sum(before["replays"].values()) == 2


def test_packs_hold_no_more_values_than_a_bucket(runtime: Runtime) -> None:
    clicks = CAPACITY * SIZE // 2 + 1
    several = [request(1, 1, ([clicks], [1], [2]), False, seed) for seed in range(2)]
    wanted = [alone(runtime, r) for r in several]
    before = runtime.stats()
    for future, want in zip(submitted(runtime, several), wanted, strict=True):
        same(future.result(30)["output"], want)
    after = runtime.stats()
    assert after["queue"]["packs"] == before["queue"]["packs"]
    assert after["split_requests"] == before["split_requests"]


def test_packs_take_all_that_a_request_may_hold(runtime: Runtime) -> None:
    """Lists, tensors, and offsets of another width, beside arrays as captured."""
    several = [plain(seed) for seed in range(3)]
    wanted = [alone(runtime, r) for r in several]
    several[0]["tags"] = several[0]["tags"].tolist()
    several[1]["dense"] = torch.from_numpy(several[1]["dense"])
    several[2]["offsets"] = several[2]["offsets"].astype(np.int64)
    for future, want in zip(submitted(runtime, several), wanted, strict=True):
        same(future.result(30)["output"], want)


def changed(seed: int, **values: Any) -> Arrays:
    given = plain(seed)
    return given | {
        name: np.asarray(value, given[name].dtype) if isinstance(value, list) else value
        for name, value in values.items()
    }


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    # What would be right if it were of another request in the pack, too.
    ({"user_index": [0, 1]}, IdRangeError, "^input 'user_index', row 1: user 1 is out of range"),
    ({"user_index": [-1, 0]}, IdRangeError, "^input 'user_index', row 0: user -1 is out of"),
    ({"offsets": [0, 1, 2]}, OffsetsError, "^input 'offsets' ends with 2, but input 'clicks'"),
    ({"offsets": [0, 1, 4]}, OffsetsError, "^input 'offsets' ends with 4, but input 'clicks'"),
    ({"offsets": [1, 1, 3]}, OffsetsError, "^input 'offsets' begins with 1"),
    ({"offsets": [0, 4, 3]}, OffsetsError, "^input 'offsets', row 1: offset 4, but input 'cl"),
    ({"lengths": [0, 0]}, OffsetsError, "^input 'lengths' adds up to 0, but input 'tags' has 1"),
    ({"lengths": [1, 1]}, OffsetsError, "^input 'lengths' adds up to 2, but input 'tags' has 1"),
    ({"lengths": [2, -1]}, OffsetsError, "^input 'lengths', row 1: length -1"),
    ({"starts": [1]}, OffsetsError, "^input 'starts' begins with 1"),
    # What is wrong in itself.
    ({"item": [[0, 1, 2], [0, 30, 0]]}, IdRangeError, "^input 'item', row 1, position 1: id 30"),
    ({"seen": [0, 0, 31]}, IdRangeError, "^input 'seen', row 0, position 2: id 31"),
    ({"user": [0, 0]}, InputShapeError, "has 1 rows, but input 'user' has 2"),
    ({"weights": [0.0, 1.0]}, InputShapeError, "^input 'weights' has 2 values, but input 'clic"),
    ({"dense": [[0.0, 1.0]]}, InputShapeError, "has . rows, but input"),
    ({"user_index": np.array([True, False])}, InputError, "^input 'user_index'"),
    ({"lengths": np.array([True, False])}, InputError, "^input 'lengths'"),
    ({"lengths": np.array([[1], [0]])}, InputError, "^input 'lengths'"),
    ({"tags": 7}, InputError, "^input 'tags'"),
    ({"tags": {0: 1}}, InputError, "^input 'tags'"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_a_wrong_request_spoils_no_other_of_its_pack(
    runtime: Runtime, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    several = [plain(1), changed(2, **wrong), plain(3)]
    wanted = [alone(runtime, several[0]), None, alone(runtime, several[2])]
    with pytest.raises(error, match=message):
        alone(runtime, several[1])
    futures = submitted(runtime, several)
    with pytest.raises(error, match=message):
        futures[1].result(30)
    for at in (0, 2):
        same(futures[at].result(30)["output"], wanted[at])


def test_two_wrong_ones_that_make_a_right_pack_are_both_told(runtime: Runtime) -> None:
    """Of 1 and 1 tags: the first says 0, the second 2."""
    futures = submitted(runtime, [changed(1, lengths=[0, 0]), changed(2, lengths=[2, 0])])
    for future, said in zip(futures, (0, 2), strict=True):
        with pytest.raises(OffsetsError, match=f"^input 'lengths' adds up to {said}, but"):
            future.result(30)


@pytest.mark.parametrize("name", ["user_index", "offsets", "lengths", "starts"])
def test_what_would_be_moved_has_to_be_right_by_itself(
    runtime: Runtime, batching: MixedBatching, name: str
) -> None:
    """A pack that looks right as a whole, of requests that are not."""
    first, second = plain(1), plain(2)
    first[name] = first[name] + 1
    with pytest.raises(PackError):
        batching.pack([batching.pieces(in_order(runtime, r), 2)[0] for r in (first, second)])


def test_clamped_ids_are_those_of_each_request(path: Path) -> None:
    several = [plain(1), changed(2, user_index=[0, 9]), changed(3, tags=[77])]
    with Runtime.load(path, check="clamp", serving=Serving(max_delay_us=50_000)) as runtime:
        wanted = [alone(runtime, r) for r in several]
        for future, want in zip(submitted(runtime, several), wanted, strict=True):
            same(future.result(30)["output"], want)


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(few, few, few), min_size=1, max_size=20),
    room=st.tuples(*[st.integers(1, 6)] * 3),
)
def test_packs_fit_in_every_way(sizes: list[tuple[int, ...]], room: tuple[int, ...]) -> None:
    line = WaitingLine(100, room, 0.0)
    for takes in sizes:
        line.put([Ticket(Piece([], takes), Reply(ThreadPromise(), 1), 0, 0.0, None)])
    line.close()
    packs = []
    while (taken := line.take()) is not None:
        packs.append([t.piece.takes for t in taken])
    assert [takes for pack in packs for takes in pack] == sizes

    def fits(pack: Sequence[tuple[int, ...]]) -> bool:
        sums = map(sum, zip(*pack, strict=True))
        return all(a <= b for a, b in zip(sums, room, strict=True))

    assert all(fits(pack) or len(pack) == 1 for pack in packs)
    for pack, following in pairwise(packs):  # full in one way, or one more would not fit
        full = any(sum(t[i] for t in pack) >= room[i] for i in range(3))
        assert full or not fits([*pack, following[0]])


@pytest.mark.parametrize("delay", [None, 20_000])
def test_chunks_are_joined_in_order(path: Path, delay: int | None) -> None:
    serving = Serving(lanes=2, chunk_rows=2, max_delay_us=delay)
    several = [request(n, 2, ([1] * n, [2] * n, [1, 3]), n % 2 == 0, n) for n in range(1, 12)]
    with Runtime.load(path, serving=serving) as runtime:
        wanted = [alone(runtime, r) for r in several]
        futures = [runtime.submit(r) for r in several * 3]
        for future, want in zip(futures, wanted * 3, strict=True):
            same(future.result(30)["output"], want)
        assert runtime.stats()["queue"]["cut"] == 9 * 3


def test_rows_count_from_the_start_of_a_request_of_chunks(path: Path) -> None:
    def given(**values: Any) -> Arrays:
        return request(5, 1, ([1] * 5, [1] * 5, [2]), False, 3) | values

    bad = [
        ({"item": np.full((5, 3), 29)}, "item", (4, 1), r"^input 'item', row 4, position 1: id 55"),
        ({}, "tags", (3,), r"^input 'tags', row 3, position 0: id 55"),
        ({}, "user_index", (4,), r"^input 'user_index', row 4: user 55 is out of range"),
    ]
    with Runtime.load(path, serving=Serving(chunk_rows=2)) as runtime:
        for values, name, at, message in bad:
            wrong = given(**values)
            wrong[name][at] = 55
            with pytest.raises(IdRangeError, match=message):
                runtime.submit(wrong).result(30)
        clicks = [1, 1, CAPACITY * SIZE + 1, 1, 1]
        wrong = request(5, 1, (clicks, [1] * 5, [2]), False, 3)
        with pytest.raises(CapacityError, match=r"^input 'clicks', row 2 has 25 values"):
            runtime.submit(wrong).result(30)


class ForOne(nn.Module):
    """A user and his candidates."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 3)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.table(user) * self.table(item)).sum(1)


def test_requests_of_one_user_are_cut_and_not_packed(captured: Any) -> None:
    model = ForOne()
    example = {"user": torch.tensor([1, 2]), "item": torch.tensor([3, 4])}
    path = captured(model, example, user_inputs=["user"])
    with pytest.raises(
        RecReplayError,
        match=r"^max_delay_us is 0, but requests cannot be packed: the model was captured for one "
        r"user a request; load without max_delay_us, or capture with more users$",
    ):
        Runtime.load(path, serving=Serving(max_delay_us=0))
    given = {"user": np.array([5]), "item": np.arange(7)}
    with Runtime.load(path, serving=Serving(chunk_rows=3)) as runtime:
        got = runtime.submit(given).result(30)["output"]
        assert runtime.stats()["queue"]["cut"] == 1
    with torch.no_grad():
        same(got, model(torch.full((7,), 5), torch.arange(7)).numpy())


def test_jagged_requests_without_users_are_packed(captured: Any) -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(20, 3, mode="sum", include_last_offset=True)

        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            return self.table(ids, offsets)

    model = Bags()
    example = {"ids": torch.arange(6), "offsets": torch.tensor([0, 2, 6])}
    path = captured(
        model, example, buckets=[8], jagged=[Jagged("ids", offsets="offsets", capacity=4)]
    )
    several = [{"ids": np.arange(at), "offsets": np.array([0, 0, at])} for at in (0, 1, 3)]
    with Runtime.load(path, serving=Serving(max_delay_us=50_000)) as runtime:
        for future, one in zip(submitted(runtime, several), several, strict=True):
            with torch.no_grad():
                want = model(torch.from_numpy(one["ids"]), torch.from_numpy(one["offsets"]))
            same(future.result(30)["output"], want.numpy())
        assert runtime.stats()["queue"]["packed"] == 3
