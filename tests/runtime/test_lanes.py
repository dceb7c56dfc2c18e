"""Several lanes: requests overlap, weights are shared, a failed lane is made anew or retired."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
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
    lane = runtime._lanes.take()
    break_lane(lane, times)
    runtime._lanes.put(lane)
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
        lanes = [runtime._lanes.take() for _ in range(2)]
        for lane in lanes:
            for captured in lane._captured.values():
                replay = captured.graph.replay

                def waiting(replay: Any = replay) -> None:
                    meeting.wait()
                    replay()

                captured.graph.replay = waiting  # type: ignore[method-assign]
            runtime._lanes.put(lane)
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
        lane = runtime._lanes.take()
        break_lane(lane, times=1)
        runtime._lanes.put(lane)
        with pytest.raises(ReplayError, match=r"^replaying bucket 8 failed: the graph is broken"):
            runtime.run(shop.request(3))
        agree(runtime.run(shop.request(3)), shop.answer(shop.request(3)))
        assert runtime.stats()["lanes"] == {"alive": 1, "rebuilt": 0, "retired": 0}


def test_a_broken_lane_is_made_anew(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path, lanes=2) as runtime:
        for _ in range(2):
            lane = runtime._lanes.take()
            break_lane(lane)
            runtime._lanes.put(lane)
        for _ in range(2):
            with pytest.raises(ReplayError):
                runtime.run(shop.request(3))
        agree(runtime.run(shop.request(3)), shop.answer(shop.request(3)))
        assert runtime.stats()["lanes"] == {"alive": 2, "rebuilt": 2, "retired": 0}
        assert runtime.stats()["failed"] == 2


def test_a_lane_that_cannot_be_made_anew_is_retired(
    shop_path: Path, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runtime.load(shop_path, lanes=2) as runtime:
        lanes = [runtime._lanes.take() for _ in range(2)]
        break_lane(lanes[0])
        for lane in lanes:
            runtime._lanes.put(lane)

        def never() -> Lane:
            raise RuntimeError("no memory")

        monkeypatch.setattr(runtime._lanes, "_make", never)
        with pytest.raises(ReplayError):
            runtime.run(shop.request(3))
        agree(runtime.run(shop.request(3)), shop.answer(shop.request(3)))
        assert runtime.stats()["lanes"] == {"alive": 1, "rebuilt": 0, "retired": 1}
        runtime.update_weights({"top.bias": shop.top.bias})  # does not wait for the retired one
        break_lane(lanes[1])
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
    def interrupt(timeout: float) -> Lane:
        raise KeyboardInterrupt

    with Runtime.load(shop_path, lanes=2) as runtime:
        free = runtime._lanes._free
        waiting = SimpleNamespace(get=iter([free.get, interrupt]).__next__)
        with monkeypatch.context() as patch:
            one = SimpleNamespace(put=free.put, get=lambda timeout: waiting.get()(timeout=timeout))
            patch.setattr(runtime._lanes, "_free", one)
            with pytest.raises(KeyboardInterrupt):
                runtime.update_weights({"top.bias": shop.top.bias})
        with ThreadPoolExecutor(2) as threads:  # both lanes are free, and nobody waits at the gate
            for got in threads.map(runtime.run, [shop.request(3)] * 4):
                agree(got, shop.answer(shop.request(3)))
        runtime.update_weights({"top.bias": shop.top.bias})


def test_a_closed_runtime_keeps_no_weights(shop_path: Path, shop: Any) -> None:
    runtime = Runtime.load(shop_path, lanes=2)
    assert runtime._loader is not None
    weight = weakref.ref(runtime._loader.weights["top.weight"])
    runtime.close()
    gc.collect()
    assert weight() is None
    for write in (runtime.update_weights, lambda given: runtime.update_rows("tag.weight", [0], 0)):
        with pytest.raises(RuntimeClosedError, match=r"^this Runtime was closed; load the artif"):
            write({"top.bias": shop.top.bias})
