"""Several lanes: requests overlap, weights are shared, a failed lane is made anew or retired."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from recreplay.runtime import Runtime
from recreplay.runtime.errors import (
    LanesLostError,
    RecReplayError,
    ReplayError,
    RuntimeClosedError,
)
from recreplay.runtime.lane import Lane
from recreplay.runtime.lanes import _Place
from recreplay.runtime.serving import Serving


def agree(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


def break_lane(lane: Lane, times: int = 10**9) -> None:
    """Every graph of the lane raises, so often, as torch does."""
    left = iter(range(times))
    lane._prepared.clear()
    for captured in lane._captured.values():
        replay = captured.graph.replay

        def failing(replay: Any = replay) -> None:
            if next(left, None) is not None:
                raise RuntimeError("the graph is broken")
            replay()

        captured.graph.replay = failing  # type: ignore[method-assign]


def fail_and_go_on(runtime: Runtime, shop: Any, times: int = 10**9) -> None:
    """One lane fails so often, in a request; the next request is answered right."""
    lease = runtime._lanes.take()
    break_lane(lease.lane, times)
    runtime._lanes.put(lease)
    with pytest.raises(ReplayError):
        runtime.run(shop.request(3))
    agree(runtime.run(shop.request(3)), shop.answer(shop.request(3)))


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_answer_concurrent_requests(shop_path: Path, shop: Any, lanes: int) -> None:
    with Runtime.load(shop_path, lanes=lanes) as runtime:
        assert runtime.lanes_alive() == lanes
        requests = [shop.request(rows, seed=rows) for rows in range(1, 21)]
        answers = [shop.answer(request) for request in requests]
        futures = [runtime.submit(r) for _ in range(20) for r in requests]
        for at, future in enumerate(futures):
            agree(future.result(timeout=30), answers[at % len(answers)])
        assert runtime.stats()["requests"] == len(futures)
        assert runtime.stats()["queue"]["submitted"] == len(futures)


def test_lanes_replay_at_the_same_time(shop_path: Path, shop: Any) -> None:
    """Two requests meet inside of their replays, which one lane could not do."""
    with Runtime.load(shop_path, lanes=2) as runtime:
        meeting = threading.Barrier(2, timeout=10)
        leases = [runtime._lanes.take() for _ in range(2)]
        for lease in leases:
            for captured in lease.lane._captured.values():
                replay = captured.graph.replay

                def waiting(replay: Any = replay) -> None:
                    meeting.wait()
                    replay()

                captured.graph.replay = waiting  # type: ignore[method-assign]
            runtime._lanes.put(lease)
        first, second = shop.request(3, seed=1), shop.request(3, seed=2)
        futures = runtime.submit(first), runtime.submit(second)
        agree(futures[0].result(timeout=20), shop.answer(first))
        agree(futures[1].result(timeout=20), shop.answer(second))


def test_arun(shop_path: Path, shop: Any) -> None:
    async def ask(runtime: Runtime) -> list[dict[str, Any]]:
        return await asyncio.gather(*(runtime.arun(shop.request(n)) for n in range(1, 12)))

    with Runtime.load(shop_path, lanes=2) as runtime:
        for rows, got in enumerate(asyncio.run(ask(runtime)), start=1):
            agree(got, shop.answer(shop.request(rows)))


def test_lanes_and_serving_exclude_each_other(shop_path: Path) -> None:
    with pytest.raises(RecReplayError, match=r"^give lanes or serving, not both"):
        Runtime.load(shop_path, lanes=2, serving=Serving())


def test_a_lane_that_works_again_is_kept(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path) as runtime:
        lease = runtime._lanes.take()
        break_lane(lease.lane, times=1)
        runtime._lanes.put(lease)
        with pytest.raises(ReplayError, match=r"^replaying bucket 8 failed: the graph is broken"):
            runtime.run(shop.request(3))
        agree(runtime.run(shop.request(3)), shop.answer(shop.request(3)))
        assert runtime.stats()["lanes"] == {"alive": 1, "rebuilt": 0, "retired": 0}


def test_a_broken_lane_is_made_anew(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path, lanes=2) as runtime:
        leases = [runtime._lanes.take() for _ in range(2)]
        for lease in leases:
            break_lane(lease.lane)
            runtime._lanes.put(lease)
        with pytest.raises(ReplayError):
            runtime.run(shop.request(3))
        made = runtime._lanes.take()  # which came back last, and would be the next
        with pytest.raises(ReplayError):
            runtime.run(shop.request(3))
        runtime._lanes.put(made)
        agree(runtime.run(shop.request(3)), shop.answer(shop.request(3)))
        assert runtime.stats()["lanes"] == {"alive": 2, "rebuilt": 2, "retired": 0}
        assert runtime.stats()["failed"] == 2


def test_a_lane_that_cannot_be_made_anew_is_retired(
    shop_path: Path, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runtime.load(shop_path, lanes=2) as runtime:
        leases = [runtime._lanes.take() for _ in range(2)]
        break_lane(leases[1].lane)
        for lease in leases:
            runtime._lanes.put(lease)

        def never() -> Lane:
            raise RuntimeError("no memory")

        monkeypatch.setattr(runtime._lanes, "_make", never)
        with pytest.raises(ReplayError):
            runtime.run(shop.request(3))
        agree(runtime.run(shop.request(3)), shop.answer(shop.request(3)))
        assert runtime.stats()["lanes"] == {"alive": 1, "rebuilt": 0, "retired": 1}
        runtime.update_weights({"top.bias": shop.top.bias})  # does not wait for the retired one
        break_lane(leases[0].lane)
        with pytest.raises(ReplayError):
            runtime.run(shop.request(3))
        message = r"^the last lane failed and could not be made anew \(no memory\)"
        with pytest.raises(LanesLostError, match=message):
            runtime.run(shop.request(3))
        with pytest.raises(LanesLostError, match=message):
            runtime.submit(shop.request(3)).result(timeout=10)
    with pytest.raises(RuntimeClosedError):
        runtime.run(shop.request(3))


@pytest.mark.inductor
def test_compiled_lanes_share_weights_and_release_the_lock(shop: Any, tmp_path: Path) -> None:
    import torch

    from recreplay.capture import capture

    example = {k: torch.from_numpy(v) for k, v in shop.request(4).items()}
    capture(shop, example, out=tmp_path / "s.rr", buckets=[8], compiler="inductor")
    with Runtime.load(tmp_path / "s.rr", lanes=2) as runtime:
        futures = [runtime.submit(shop.request(n, seed=n)) for n in range(1, 9)]
        for rows, future in enumerate(futures, start=1):
            agree(future.result(timeout=30), shop.answer(shop.request(rows, seed=rows)))
        pages = Path("/proc/self/maps").read_text().count("launch.so")
        assert pages > 0
    assert "launch.so" not in Path("/proc/self/maps").read_text()  # closing unmaps it


def test_a_lane_is_proved_where_the_artifact_is_gone(shop_path: Path, shop: Any) -> None:
    with TemporaryDirectory() as folder:
        path = shutil.copytree(shop_path, Path(folder) / "shop.rr")
        runtime = Runtime.load(path)
    with runtime:
        fail_and_go_on(runtime, shop, times=1)
        assert runtime.stats()["lanes"] == {"alive": 1, "rebuilt": 0, "retired": 0}


def test_a_lane_is_made_anew_wherever_the_process_has_gone(
    shop_path: Path, shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop_path.parent)
    with Runtime.load(shop_path.name) as runtime:
        monkeypatch.chdir(tmp_path)
        fail_and_go_on(runtime, shop)
        assert runtime.stats()["lanes"] == {"alive": 1, "rebuilt": 1, "retired": 0}


def test_an_interrupted_writer_leaves_the_runtime_serving(
    shop_path: Path, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(place: _Place, timeout: float) -> bool:
        raise KeyboardInterrupt

    with Runtime.load(shop_path, lanes=2) as runtime:
        held = runtime._lanes.take()
        with monkeypatch.context() as patch:
            patch.setattr(_Place, "sleep", interrupt)
            with pytest.raises(KeyboardInterrupt):
                runtime.update_weights({"top.bias": shop.top.bias})
        runtime._lanes.put(held)
        with ThreadPoolExecutor(2) as threads:  # both lanes are free, and nobody waits at the gate
            for got in threads.map(runtime.run, [shop.request(3)] * 4):
                agree(got, shop.answer(shop.request(3)))
        runtime.update_weights({"top.bias": shop.top.bias})


def test_who_waits_learns_of_a_lane_that_an_interrupted_one_was_told_of(
    shop_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(place: _Place, timeout: float) -> bool:
        first = len(line) == 1
        asleep(place, timeout)
        if first:
            raise KeyboardInterrupt
        return True

    asleep = _Place.sleep
    monkeypatch.setattr(_Place, "sleep", sleep)
    with Runtime.load(shop_path) as runtime:
        lanes, line = runtime._lanes, runtime._lanes._line
        held = lanes.take()
        with ThreadPoolExecutor(2) as threads:
            takers = []
            for at in range(2):
                takers.append(threads.submit(lanes.take))
                while len(line) <= at:
                    time.sleep(0.001)
                time.sleep(0.05)  # until it sleeps
            lanes.put(held)
            with pytest.raises(KeyboardInterrupt):
                takers[0].result(timeout=10)
            told = wait_for([takers[1]], timeout=10).done
            for place in line:
                place.wake()
        lanes.put(held)
        assert told, "a lane was free, and a thread waited for it"


def test_threads_take_turns(shop_path: Path, shop: Any) -> None:
    """A thread that asks again at once is sooner than those that wake up, but not for ever."""
    request, until = shop.request(3), time.monotonic() + 1
    with Runtime.load(shop_path) as runtime, ThreadPoolExecutor(4) as threads:

        def ask(_: int) -> int:
            answered = 0
            while time.monotonic() < until:
                runtime.run(request)
                answered += 1
            return answered

        assert min(threads.map(ask, range(4))) > 10


def test_more_threads_than_lanes_beside_a_writer(shop_path: Path, shop: Any) -> None:
    requests = [shop.request(rows, seed=rows) for rows in (1, 3, 8)]
    answers = [shop.answer(request) for request in requests]
    with Runtime.load(shop_path, lanes=2) as runtime, ThreadPoolExecutor(8) as threads:

        def ask(at: int) -> None:
            for turn in range(50):
                which = (at + turn) % len(requests)
                agree(runtime.run(requests[which]), answers[which])

        asked = [threads.submit(ask, at) for at in range(7)]
        for _ in range(20):
            runtime.update_weights({"top.bias": shop.top.bias})
        for done in asked:
            done.result(timeout=60)
        assert runtime.stats()["requests"] == 350
        assert len(runtime._lanes.free) == 2


def test_a_closed_runtime_keeps_no_weights(shop_path: Path, shop: Any) -> None:
    runtime = Runtime.load(shop_path, lanes=2)
    assert runtime._loader is not None
    weight = weakref.ref(runtime._loader.weights["top.weight"])
    runtime.close()
    assert weight() is None  # without a collection of garbage, which may be long in coming
    for write in (runtime.update_weights, lambda given: runtime.update_rows("tag.weight", [0], 0)):
        with pytest.raises(RuntimeClosedError, match=r"^this Runtime was closed; load the artif"):
            write({"top.bias": shop.top.bias})
