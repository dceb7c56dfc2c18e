"""What is submitted is answered whatever callbacks do, and waits for a lane as long as it may."""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recreplay.runtime import Funnel, Runtime, Serving, Stage
from recreplay.runtime.batching import PackError, end_to_end
from recreplay.runtime.errors import DeadlineExceeded


@pytest.fixture(scope="module")
def runtime(shop_path: Path) -> Any:
    with Runtime.load(shop_path, serving=Serving(inline_us=0)) as loaded:
        yield loaded


def leave(_: Future[Any]) -> None:
    sys.exit()


def test_a_callback_that_ends_threads_ends_none_of_ours(
    runtime: Runtime, shop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    request = shop.request(3)
    first = runtime.submit(request)
    first.add_done_callback(leave)
    for _ in range(3):
        np.testing.assert_allclose(
            runtime.submit(request).result(10)["score"], shop.answer(request)["score"], rtol=1e-4
        )
    assert first.done()
    assert not caplog.records or "a callback of a request ended" in caplog.text


def test_an_answer_that_there_is_no_memory_for_is_an_error(
    runtime: Runtime, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(parts: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("recreplay.runtime.waiting.join", full)
        with pytest.raises(MemoryError):
            runtime.submit(shop.request(3)).result(10)
    runtime.submit(shop.request(3)).result(10)


def test_a_deadline_holds_while_no_lane_is_free(runtime: Runtime, shop: Any) -> None:
    request = shop.request(3)
    with runtime.borrow(3):
        late = runtime.submit(request, deadline_us=50_000)
        time.sleep(0.15)
    with pytest.raises(DeadlineExceeded, match=r"and was to wait at most 50000"):
        late.result(10)
    assert runtime.stats()["queue"]["expired"] == 1


def test_what_is_cancelled_while_no_lane_is_free_is_not_replayed(
    runtime: Runtime, shop: Any
) -> None:
    request = shop.request(3)

    async def ask() -> None:
        task = asyncio.create_task(runtime.arun(request))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = runtime.stats()["requests"]
    with runtime.borrow(3):
        future = runtime.submit(request)
        time.sleep(0.05)
        assert future.cancel()
    with runtime.borrow(3):
        asyncio.run(ask())
    runtime.submit(request).result(10)
    assert runtime.stats()["requests"] == before + 1


def test_closing_a_funnel_waits_for_no_request_that_was_cancelled(
    runtime: Runtime, shop: Any
) -> None:
    funnel = Funnel([Stage(runtime, 2, "score")])
    with runtime.borrow(3):
        asked = funnel.submit(shop.request(3))
        assert asked.cancel()
    assert wait([asked], timeout=10).done == {asked}
    funnel.close()


def test_a_mask_is_not_dropped_by_packing() -> None:
    masked = np.ma.masked_array(np.zeros(2), [True, False])
    with pytest.raises(PackError, match=r"^an array has a mask, which joining would drop$"):
        end_to_end([masked, np.zeros(2)])
