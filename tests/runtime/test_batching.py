"""Requests that wait: packed, cut, refused when there are too many, answered late by an error."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recreplay.runtime import Runtime
from recreplay.runtime.batching import Piece, cut, join, pack, unpack
from recreplay.runtime.errors import (
    DeadlineExceeded,
    IdRangeError,
    InputDtypeError,
    InputShapeError,
    InputTypeError,
    Overloaded,
    RecReplayError,
    ReplayError,
    RuntimeClosedError,
)
from recreplay.runtime.promises import ThreadPromise
from recreplay.runtime.serving import Serving
from recreplay.runtime.waiting import Reply, Ticket, WaitingLine


def agree(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


class Held:
    """A runtime whose lanes are all taken, so that what is submitted has to wait."""

    def __init__(self, runtime: Runtime) -> None:
        self.lanes = runtime._lanes
        self.taken = [self.lanes.take() for _ in range(runtime.lanes_alive())]

    def release(self) -> None:
        for lane in self.taken:
            self.lanes.put(lane)
        self.taken = []


# Pure parts


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_what_is_packed_comes_apart_again(sizes: list[int]) -> None:
    requests = [[np.full((n, 2), i), np.arange(n) + 10 * i] for i, n in enumerate(sizes)]
    both = pack(requests)
    parts = list(unpack({"a": both[0], "b": both[1]}, sizes))
    assert len(parts) == len(sizes)
    for part, request in zip(parts, requests, strict=True):
        np.testing.assert_array_equal(part["a"], request[0])
        np.testing.assert_array_equal(part["b"], request[1])


@given(st.integers(1, 50), st.integers(1, 20))
def test_what_is_cut_joins_again(rows: int, most: int) -> None:
    array = np.arange(rows * 2).reshape(rows, 2)
    parts = cut([array], rows, most)
    assert [len(p[0]) for p in parts[:-1]] == [most] * (len(parts) - 1)
    assert 1 <= len(parts[-1][0]) <= most
    np.testing.assert_array_equal(join([{"x": p[0]} for p in parts])["x"], array)


def ticket(rows: int, arrived: float = 0.0, due: float | None = None) -> Ticket:
    return Ticket(Piece([], (rows,)), Reply(ThreadPromise(), 1), 0, arrived, due)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 16))
@settings(deadline=None)
def test_packs_keep_the_order_and_fit_a_bucket(sizes: list[int], most: int) -> None:
    line = WaitingLine(100, (most,), 0.0)
    for rows in sizes:
        line.put([ticket(rows)])
    line.close()
    packs = []
    while (taken := line.take()) is not None:
        packs.append([t.rows for t in taken])
    assert [rows for pack_ in packs for rows in pack_] == sizes
    assert all(sum(pack_) <= most or len(pack_) == 1 for pack_ in packs)
    for one, following in pairwise(packs):
        assert sum(one) + following[0] > most  # no pack could have taken one more


def test_the_first_of_a_pack_waits_no_longer_than_the_delay() -> None:
    line = WaitingLine(10, (8,), 0.05)
    now = time.monotonic()
    line.put([ticket(1, now)])
    assert line.take() is not None
    assert 0.045 <= time.monotonic() - now < 0.5  # 50 ms, on a machine that may be busy
    line.put([ticket(4, time.monotonic()), ticket(4, time.monotonic())])
    now = time.monotonic()
    taken = line.take()
    assert taken is not None
    assert len(taken) == 2
    assert time.monotonic() - now < 0.04  # a full pack does not wait


def test_late_tickets_are_answered_at_once() -> None:
    line = WaitingLine(10, (8,), None)
    promise = ThreadPromise()
    begun = time.monotonic()
    late = Ticket(Piece([], (1,)), Reply(promise, 1), 0, begun - 2, begun - 1)
    line.put([late])
    taker = threading.Thread(target=line.take, daemon=True)
    taker.start()
    message = r"^the request waited \d+ µs for a lane and was to wait at most 1000000 µs"
    with pytest.raises(DeadlineExceeded, match=message.replace("1000000", r"\d+")):
        promise.future.result(timeout=5)
    assert line.expired == 1
    line.close()
    taker.join(5)


# In a runtime


@pytest.fixture(scope="module")
def batching(shop_path: Path) -> Iterator[Runtime]:
    with Runtime.load(shop_path, serving=Serving(max_delay_us=50_000)) as runtime:
        yield runtime


def test_requests_that_wait_become_one_replay(batching: Runtime, shop: Any) -> None:
    before = batching.stats()
    requests = [shop.request(2, seed=i) for i in range(4)]
    futures = [batching.submit(request) for request in requests]
    for request, future in zip(requests, futures, strict=True):
        agree(future.result(timeout=30), shop.answer(request))
    after = batching.stats()
    assert after["queue"]["packed"] - before["queue"]["packed"] == 4
    assert after["replays"][8] - before["replays"].get(8, 0) == 1
    assert after["requests"] - before["requests"] == 4


def test_a_wrong_request_spoils_no_other_of_its_pack(batching: Runtime, shop: Any) -> None:
    good, bad = shop.request(2, seed=1), shop.request(2, seed=2)
    bad["ids_1"][1, 2] = 30
    futures = [batching.submit(r) for r in (good, bad, good)]
    agree(futures[0].result(timeout=30), shop.answer(good))
    with pytest.raises(IdRangeError, match=r"^input 'ids_1', row 1, position 2: id 30 is out of"):
        futures[1].result(timeout=30)
    agree(futures[2].result(timeout=30), shop.answer(good))


@pytest.mark.parametrize("name", ["ids_1", "tag", "dense"])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda a: np.concatenate((a[:, None], a[:, None]), 1), InputShapeError, "has shape"),
        (lambda a: a.astype("U8"), InputTypeError, "expected an array"),
        (lambda a: a.astype("c8"), InputTypeError, "expected an array"),
        (lambda a: a[:1], InputShapeError, "rows"),
        (lambda a: 7, InputShapeError, "has shape"),
        (lambda a: {0: 1, 1: 2}, InputTypeError, "expected an array"),
    ],
)
def test_no_wrong_array_spoils_another_request_of_its_pack(
    batching: Runtime, shop: Any, name: str, wrong: Any, error: type[Exception], message: str
) -> None:
    good, bad = shop.request(2, seed=1), shop.request(2, seed=2)
    bad[name] = wrong(bad[name])
    futures = [batching.submit(r) for r in (good, bad, good)]
    agree(futures[0].result(timeout=30), shop.answer(good))
    with pytest.raises(error, match=f"^input .*{message}"):
        futures[1].result(timeout=30)
    agree(futures[2].result(timeout=30), shop.answer(good))


def test_packs_take_all_that_a_request_may_hold(batching: Runtime, shop: Any) -> None:
    """Wider ids, lists and tensors, beside arrays as captured."""
    requests = [shop.request(2, seed=i) for i in range(4)]
    given = [dict(request) for request in requests]
    given[1]["tag"] = given[1]["tag"].astype("i8")
    given[2]["ids_0"] = given[2]["ids_0"].tolist()
    given[3]["dense"] = torch.from_numpy(given[3]["dense"]).requires_grad_()
    futures = [batching.submit(request) for request in given]
    for request, future in zip(requests, futures, strict=True):
        agree(future.result(timeout=30), shop.answer(request))


def test_chunks_are_joined_in_order(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path, serving=Serving(lanes=2, chunk_rows=3)) as runtime:
        for rows in (1, 3, 4, 20):
            request = shop.request(rows, seed=rows)
            agree(runtime.submit(request).result(timeout=30), shop.answer(request))
        stats = runtime.stats()
        assert stats["queue"]["cut"] == 2
        assert stats["requests"] == 4
        assert sum(stats["replays"].values()) == 1 + 1 + 2 + 7


def test_a_full_queue_refuses(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path, serving=Serving(max_queue=3)) as runtime:
        held = Held(runtime)
        request = shop.request(2)
        futures: list[Future[Any]] = []
        for _ in range(4):
            futures.append(runtime.submit(request))
            time.sleep(0.02)  # so that the lane's thread takes the first from the queue
        with pytest.raises(Overloaded, match=r"^3 requests wait already and at most 3 may"):
            runtime.submit(request)
        held.release()
        for future in futures:
            agree(future.result(timeout=30), shop.answer(request))
        assert runtime.stats()["queue"]["overloaded"] == 1
        agree(runtime.submit(request).result(timeout=30), shop.answer(request))


def test_a_deadline_passes_while_waiting(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path, serving=Serving(deadline_us=5_000)) as runtime:
        held = Held(runtime)
        first = runtime.submit(shop.request(2), deadline_us=10_000_000)
        time.sleep(0.02)
        second = runtime.submit(shop.request(2))
        time.sleep(0.02)
        held.release()
        first.result(timeout=30)
        with pytest.raises(DeadlineExceeded, match=r"was to wait at most 5000 µs; it was not"):
            second.result(timeout=30)
        assert runtime.stats()["queue"]["expired"] == 1
        assert runtime.stats()["requests"] == 1


def test_cancelled_requests_are_not_replayed(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path) as runtime:
        held = Held(runtime)
        runtime.submit(shop.request(2))
        time.sleep(0.02)
        second = runtime.submit(shop.request(2))
        assert second.cancel()
        held.release()
        runtime.submit(shop.request(2)).result(timeout=30)
        assert runtime.stats()["requests"] == 2


def test_closing_drains_packs_and_chunks(shop_path: Path, shop: Any) -> None:
    serving = Serving(lanes=2, max_delay_us=20_000, chunk_rows=4)
    runtime = Runtime.load(shop_path, serving=serving)
    requests = [shop.request(rows, seed=rows) for rows in range(1, 14)] * 5
    futures = [runtime.submit(request) for request in requests]
    runtime.close()
    for request, future in zip(requests, futures, strict=True):
        assert future.done()
        agree(future.result(), shop.answer(request))
    with pytest.raises(RuntimeClosedError):
        runtime.submit(requests[0])


@pytest.mark.parametrize("name", ["lanes", "max_queue", "chunk_rows", "deadline_us"])
def test_options_are_checked(name: str) -> None:
    with pytest.raises(RecReplayError, match=rf"^{name} is 0; expected a whole number, 1 or more"):
        Serving(**{name: 0})


def test_serving_json_is_read_back(tmp_path: Path) -> None:
    import json

    serving = Serving(lanes=2, max_delay_us=0, chunk_rows=64)
    path = tmp_path / "serving.json"
    path.write_text(json.dumps({**serving.to_json(), "report": {"qps": 1}}))
    assert Serving.read(path) == serving
    path.write_text('{"lane": 2}')
    with pytest.raises(RecReplayError, match=r"serving\.json: unknown lane; expected lanes, max_"):
        Serving.read(path)
    path.write_text('{"lanes": "two"}')
    with pytest.raises(RecReplayError, match=r"serving\.json: lanes is 'two'; expected a whole nu"):
        Serving.read(path)
    path.write_text("[" * 100_000)
    with pytest.raises(RecReplayError, match=r"serving\.json is no serving\.json: maximum recurs"):
        Serving.read(path)


@pytest.mark.parametrize("start", [0, 1])
def test_a_cancelled_request_of_chunks_is_not_replayed(
    shop_path: Path, shop: Any, start: int
) -> None:
    with Runtime.load(shop_path, serving=Serving(chunk_rows=2)) as runtime:
        held = Held(runtime)
        first = [runtime.submit(shop.request(1)) for _ in range(start)]
        cancelled = runtime.submit(shop.request(6))
        time.sleep(0.05)  # the thread has what is first
        assert cancelled.cancel()
        held.release()
        for future in first:
            future.result(10)
        agree(runtime.submit(shop.request(5)).result(10), shop.answer(shop.request(5)))


def test_the_row_of_an_id_counts_from_the_start_of_a_request_of_chunks(
    shop_path: Path, shop: Any
) -> None:
    wrong = shop.request(6)
    wrong["tag"][5] = 99
    with (
        Runtime.load(shop_path, serving=Serving(chunk_rows=2)) as runtime,
        pytest.raises(IdRangeError, match=r"^input 'tag', row 5: id 99 is out of range"),
    ):
        runtime.submit(wrong).result(10)


def test_what_is_refused_alone_is_refused_in_a_pack(batching: Runtime, shop: Any) -> None:
    narrow = {**shop.request(2), "dense": np.ones((2, 4), np.int16)}
    with pytest.raises(InputDtypeError):
        batching.run(narrow)
    held = Held(batching)
    futures = [batching.submit(request) for request in (shop.request(2), narrow, shop.request(2))]
    held.release()
    with pytest.raises(InputDtypeError, match=r"^input 'dense' has dtype int16; expected float32"):
        futures[1].result(10)
    for future in (futures[0], futures[2]):
        agree(future.result(10), shop.answer(shop.request(2)))


class Computed(nn.Module):
    """Ids that no check covers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids * 2 + 1)


def test_a_bad_computed_id_spoils_no_other_request_of_its_pack(captured: Any) -> None:
    model = Computed()
    path = captured(model, {"ids": torch.tensor([1, 2])})
    with Runtime.load(path, serving=Serving(max_delay_us=50_000)) as runtime:
        held = Held(runtime)
        futures = [runtime.submit({"ids": np.array([i])}) for i in (1, 7, 2)]
        held.release()
        with pytest.raises(ReplayError, match="index out of range"):
            futures[1].result(10)
        for i, future in ((1, futures[0]), (2, futures[2])):
            want = model.table.weight[2 * i + 1 :][:1].detach().numpy()
            np.testing.assert_allclose(future.result(10)["output"], want)


@pytest.mark.parametrize("given", [0, -1, 1.5, "5", True])
def test_a_deadline_is_a_number_of_microseconds(shop_path: Path, shop: Any, given: Any) -> None:
    with (
        Runtime.load(shop_path) as runtime,
        pytest.raises(RecReplayError, match=r"^deadline_us is .*; expected a whole number, 1 or"),
    ):
        runtime.submit(shop.request(1), deadline_us=given)


def test_a_callback_may_close(shop_path: Path, shop: Any) -> None:
    runtime = Runtime.load(shop_path)
    closed = threading.Event()

    def close(future: object) -> None:
        runtime.close()
        closed.set()

    runtime.submit(shop.request(1)).add_done_callback(close)
    assert closed.wait(10)
    for use in (runtime.run, runtime.submit):
        with pytest.raises(RuntimeClosedError):
            use(shop.request(1))


_AT_EXIT = """
import sys
import numpy as np
from recreplay.runtime import Runtime

runtime = Runtime.load(sys.argv[1])
request = {"ids": np.zeros(200, np.int64)}
futures = [runtime.submit(request) for _ in range(300)]
futures[-1].add_done_callback(lambda future: print("answered", len(future.result()["output"])))
raise ValueError("of the caller")
"""


def test_a_process_ends_as_it_would_without_us(captured: Any) -> None:
    path = captured(Computed(), {"ids": torch.tensor([1, 2])})
    ended = subprocess.run(
        [sys.executable, "-c", _AT_EXIT, str(path)], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stdout == "answered 200\n"
    assert ended.stderr.endswith("ValueError: of the caller\n")
