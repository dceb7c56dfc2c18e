"""Requests of coroutines: answered where they come, or by the threads of lanes."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from everything import CAPACITY, Arrays, captured, request
from test_batching import Held, agree
from test_lanes import break_lane

from recreplay.runtime import ModelRepository, Runtime, Serving
from recreplay.runtime.errors import (
    BorrowError,
    CapacityError,
    DeadlineExceeded,
    IdRangeError,
    InputShapeError,
    Overloaded,
    RecReplayError,
    ReplayError,
    RuntimeClosedError,
)
from recreplay.runtime.promises import LoopPromise, Mailbox

INLINE = Serving(inline_us=1_000_000)
QUEUED = Serving(inline_us=0)


def slow(runtime: Runtime, size: int, seconds: float) -> None:
    """Replays of one bucket take so long."""
    lease = runtime._lanes.take()
    lane = lease.lane
    lane._prepared.clear()
    captured = lane._captured[size]
    replay = captured.graph.replay

    def slowly() -> None:
        time.sleep(seconds)
        replay()

    captured.graph.replay = slowly  # type: ignore[method-assign]
    runtime._lanes.put(lease)


def inline(runtime: Runtime) -> int:
    return int(runtime.stats()["queue"]["inline"])


# Inline


def test_a_short_replay_is_answered_where_it_comes(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path, serving=INLINE) as runtime:
        for rows in (1, 2, 5, 8):
            agree(asyncio.run(runtime.arun(shop.request(rows))), shop.answer(shop.request(rows)))
        stats = runtime.stats()
        assert stats["requests"] == stats["queue"]["submitted"] == stats["queue"]["inline"] == 4
        assert stats["queue"]["queue_ns"] == 0
        assert stats["queue"]["replay_ns"] > 0
        assert not [t for t in threading.enumerate() if t.name.startswith("recreplay-lane")]


def test_what_is_split_is_for_a_lane(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path, serving=INLINE) as runtime:
        agree(asyncio.run(runtime.arun(shop.request(9))), shop.answer(shop.request(9)))
        assert inline(runtime) == 0


def test_nothing_is_inline_where_that_is_not_wanted(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path, serving=QUEUED) as runtime:
        agree(asyncio.run(runtime.arun(shop.request(1))), shop.answer(shop.request(1)))
        assert inline(runtime) == 0


def test_only_buckets_that_replay_in_time_are_inline(shop_path: Path) -> None:
    """The measurement of loading, on a lane whose buckets were made slow."""
    with Runtime.load(shop_path) as runtime:
        slow(runtime, 8, 0.01)
        stored = runtime._test.stored()
        lease = runtime._lanes.take()
        assert runtime._test.rows_within(lease.lane, 9_000, stored) == 2
        assert runtime._test.rows_within(lease.lane, 1_000_000, stored) == 8
        runtime._lanes.put(lease)
        slow(runtime, 2, 0.02)
        lease = runtime._lanes.take()
        assert runtime._test.rows_within(lease.lane, 15_000, stored) == 0
        runtime._lanes.put(lease)
        assert runtime.stats()["requests"] == 0  # a test is no request


def test_who_finds_no_lane_waits_in_the_queue(shop_path: Path, shop: Any) -> None:
    async def ask(runtime: Runtime) -> None:
        held = Held(runtime)
        asked = asyncio.ensure_future(runtime.arun(shop.request(2)))
        await asyncio.sleep(0.05)
        assert not asked.done()
        held.release()
        agree(await asked, shop.answer(shop.request(2)))

    with Runtime.load(shop_path, serving=INLINE) as runtime:
        asyncio.run(ask(runtime))
        assert inline(runtime) == 0


def test_who_has_a_borrow_is_not_answered_inline(shop_path: Path, shop: Any) -> None:
    """As `submit`: a lane's own thread answers."""

    async def ask(runtime: Runtime) -> None:
        with runtime.borrow(2):
            with pytest.raises(BorrowError):
                runtime.run(shop.request(1))
            agree(await runtime.arun(shop.request(1)), shop.answer(shop.request(1)))

    with Runtime.load(shop_path, serving=Serving(lanes=2, inline_us=1_000_000)) as runtime:
        asyncio.run(ask(runtime))
        assert inline(runtime) == 0


def test_refreshes_are_waited_for_in_the_queue(shop_path: Path, shop: Any) -> None:
    async def ask(runtime: Runtime) -> None:
        with runtime._lanes.all_idle():
            asked = asyncio.ensure_future(runtime.arun(shop.request(1)))
            await asyncio.sleep(0.05)
            assert not asked.done()
        agree(await asked, shop.answer(shop.request(1)))

    with Runtime.load(shop_path, serving=INLINE) as runtime:
        asyncio.run(ask(runtime))


@pytest.mark.parametrize("serving", [INLINE, QUEUED])
def test_a_wrong_request_is_told_so_and_counted_once(
    shop_path: Path, shop: Any, serving: Serving
) -> None:
    bad = shop.request(2)
    bad["ids_1"][1, 2] = 30
    uneven = {**shop.request(2), "dense": shop.request(1)["dense"]}
    with Runtime.load(shop_path, serving=serving) as runtime:
        with pytest.raises(IdRangeError, match=r"^input 'ids_1', row 1, position 2: id 30 is out"):
            asyncio.run(runtime.arun(bad))
        with pytest.raises(InputShapeError, match=r"input 'ids_0' has 2 rows"):
            asyncio.run(runtime.arun(uneven))
        with pytest.raises(RecReplayError, match=r"^deadline_us is 0; expected a whole number"):
            asyncio.run(runtime.arun(shop.request(1), deadline_us=0))
        agree(asyncio.run(runtime.arun(shop.request(2))), shop.answer(shop.request(2)))
        assert runtime.stats()["failed"] == 2
        assert runtime.stats()["requests"] == 1


@pytest.mark.parametrize("times", [1, 10**9])
def test_a_lane_that_fails_is_mended_by_another_thread(
    shop_path: Path, shop: Any, times: int
) -> None:
    async def ask(runtime: Runtime) -> None:
        with pytest.raises(ReplayError, match=r"^replaying bucket 2 failed: the graph is broken"):
            await runtime.arun(shop.request(2))
        agree(await runtime.arun(shop.request(2)), shop.answer(shop.request(2)))

    with Runtime.load(shop_path, serving=INLINE) as runtime:
        lease = runtime._lanes.take()
        break_lane(lease.lane, times)
        runtime._lanes.put(lease)
        asyncio.run(ask(runtime))
        found = runtime.stats()
        assert found["lanes"] == {"alive": 1, "rebuilt": int(times > 1), "retired": 0}
        assert found["failed"] == 1


def test_a_closed_runtime_answers_no_coroutine(shop_path: Path, shop: Any) -> None:
    runtime = Runtime.load(shop_path, serving=INLINE)
    runtime.close()
    with pytest.raises(RuntimeClosedError, match=r"^this Runtime was closed"):
        asyncio.run(runtime.arun(shop.request(1)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captured(tmp_path_factory.mktemp("mixed") / "m.rr", "int64")


def one_row(tags: int) -> Arrays:
    return request(1, 1, ([1], [tags], [1]), False, 0)


def test_values_that_need_a_larger_bucket_are_for_a_lane(mixed: Path) -> None:
    with Runtime.load(mixed, serving=INLINE) as runtime:
        smallest = runtime.manifest.buckets[0].size
        runtime._inline.rows = smallest
        few, many = one_row(1), one_row(CAPACITY * smallest + 1)
        for values, answered in ((few, 1), (many, 1), (few, 2)):
            agree(asyncio.run(runtime.arun(values)), runtime.run(values))
            assert inline(runtime) == answered
        far = one_row(CAPACITY * runtime.manifest.buckets[-1].size + 1)
        with pytest.raises(CapacityError):
            asyncio.run(runtime.arun(far))


# By the threads of lanes


@pytest.mark.parametrize(
    "serving",
    [
        Serving(lanes=2, inline_us=0),
        Serving(lanes=2, inline_us=0, max_delay_us=0),
        Serving(lanes=2, inline_us=0, max_delay_us=200, chunk_rows=3),
        Serving(lanes=2, inline_us=1_000_000, max_delay_us=0),
    ],
)
def test_several_loops_at_once(shop_path: Path, shop: Any, serving: Serving) -> None:
    requests = [shop.request(rows, seed=rows) for rows in range(1, 12)]
    answers = [shop.answer(one) for one in requests]

    async def ask(runtime: Runtime) -> None:
        for _ in range(10):
            found = await asyncio.gather(*(runtime.arun(one) for one in requests))
            for got, answer in zip(found, answers, strict=True):
                agree(got, answer)

    with Runtime.load(shop_path, serving=serving) as runtime, ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(asyncio.run, ask(runtime)) for _ in range(6)]:
            done.result(60)
        assert runtime.stats()["requests"] == 6 * 10 * len(requests)


def test_a_coroutine_that_is_cancelled_while_it_waits_is_not_replayed(
    shop_path: Path, shop: Any
) -> None:
    async def ask(runtime: Runtime) -> None:
        held = Held(runtime)
        first = asyncio.ensure_future(runtime.arun(shop.request(2)))
        await asyncio.sleep(0.05)  # a lane's thread has it
        second = asyncio.ensure_future(runtime.arun(shop.request(2)))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        held.release()
        await first
        await runtime.arun(shop.request(2))

    with Runtime.load(shop_path, serving=QUEUED) as runtime:
        asyncio.run(ask(runtime))
        assert runtime.stats()["requests"] == 2


def test_a_coroutine_may_be_cancelled_while_it_is_replayed(shop_path: Path, shop: Any) -> None:
    async def ask(runtime: Runtime) -> None:
        asked = asyncio.ensure_future(runtime.arun(shop.request(2)))
        await asyncio.sleep(0.05)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        agree(await runtime.arun(shop.request(2)), shop.answer(shop.request(2)))

    with Runtime.load(shop_path, serving=QUEUED) as runtime:
        slow(runtime, 2, 0.2)
        asyncio.run(ask(runtime))
        assert runtime.stats()["requests"] == 2


def test_a_loop_that_ends_before_its_answer_harms_nobody(shop_path: Path, shop: Any) -> None:
    async def leave(runtime: Runtime) -> None:
        asking = runtime.arun(shop.request(2))
        asking.send(None)  # it waits, and nothing of this loop will cancel it
        kept.append(asking)

    kept: list[Coroutine[Any, Any, Any]] = []
    with Runtime.load(shop_path, serving=QUEUED) as runtime:
        slow(runtime, 2, 0.1)
        asyncio.run(leave(runtime))
        agree(runtime.submit(shop.request(2)).result(10), shop.answer(shop.request(2)))
        assert runtime.stats()["requests"] == 2
        kept[0].close()


def test_late_and_refused_coroutines_are_told_so(shop_path: Path, shop: Any) -> None:
    async def ask(runtime: Runtime) -> None:
        held = Held(runtime)
        first = asyncio.ensure_future(runtime.arun(shop.request(1)))
        await asyncio.sleep(0.05)
        late = asyncio.ensure_future(runtime.arun(shop.request(1), deadline_us=1_000))
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded, match=r"^1 requests wait already and at most 1 may"):
            await runtime.arun(shop.request(1))
        held.release()
        with pytest.raises(DeadlineExceeded, match=r"was to wait at most 1000 µs"):
            await late
        agree(await first, shop.answer(shop.request(1)))

    with Runtime.load(shop_path, serving=Serving(inline_us=0, max_queue=1)) as runtime:
        asyncio.run(ask(runtime))


def test_a_pack_wakes_its_loop_once(
    shop_path: Path, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[int] = []
    call = Mailbox.call

    def counting(mailbox: Mailbox) -> None:
        if not mailbox._called and mailbox._letters:
            woken.append(len(mailbox._letters))
        call(mailbox)

    monkeypatch.setattr(Mailbox, "call", counting)

    async def ask(runtime: Runtime) -> None:
        held = Held(runtime)
        asked = [asyncio.ensure_future(runtime.arun(shop.request(1, seed=i))) for i in range(8)]
        await asyncio.sleep(0.05)
        held.release()
        for seed, one in enumerate(asked):
            agree(await one, shop.answer(shop.request(1, seed=seed)))

    with Runtime.load(shop_path, serving=Serving(inline_us=0, max_delay_us=50_000)) as runtime:
        asyncio.run(ask(runtime))
        assert runtime.stats()["queue"]["packs"] == 1
    assert woken == [8]


def test_letters_of_many_threads_all_arrive() -> None:
    async def receive() -> list[dict[str, Any]]:
        mailbox = Mailbox(asyncio.get_running_loop())
        promises = [LoopPromise(mailbox) for _ in range(2000)]
        answer = {"x": np.zeros(1)}

        def send(mine: list[LoopPromise]) -> None:
            for promise in mine:
                assert promise.start()
                promise.give(answer)
                promise.wake()

        threads = [threading.Thread(target=send, args=(promises[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        return await asyncio.wait_for(asyncio.gather(*(p.future for p in promises)), 30)

    assert len(asyncio.run(receive())) == 2000


# In a repository


def test_a_repository_answers_coroutines_while_versions_change(
    shop_path: Path, shop: Any, tmp_path: Path
) -> None:
    shutil.copytree(shop_path, tmp_path / "shop" / "1")
    shutil.copytree(shop_path, tmp_path / "shop" / "2")
    (tmp_path / "shop" / "serving.json").write_text('{"inline_us": 1000000}')
    stop = threading.Event()

    async def ask(repository: ModelRepository) -> set[str]:
        versions = set()
        while not stop.is_set():
            version, got = await repository.arun("shop", shop.request(3))
            agree(got, shop.answer(shop.request(3)))
            versions.add(version)
            await asyncio.sleep(0)
        return versions

    repository = ModelRepository(tmp_path)
    try:
        repository.load("shop", "1")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(asyncio.run, ask(repository))
            for version in ("2", "1", "2"):
                repository.load("shop", version)
                time.sleep(0.05)
            stop.set()
            assert asked.result(30) == {"1", "2"}
    finally:
        stop.set()
        repository.close()
