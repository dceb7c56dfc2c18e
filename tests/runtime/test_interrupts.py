"""Ctrl-C at any moment: no lane is lost, no write is half done, and closing ends.

A timer raises as the signal's handler does, between any two steps of Python.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recreplay.runtime import Runtime
from recreplay.runtime.errors import BorrowError
from recreplay.runtime.uninterrupted import not_interrupted, on_a_thread

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="there are no timers that signal"
)


class Interrupted(KeyboardInterrupt):
    pass


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    assert threading.current_thread() is threading.main_thread()

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def soon(seconds: float, work: Callable[[], object]) -> None:
    """`work` is interrupted within so many seconds, or is done before."""
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, seconds))
            work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted:
        pass


def again(work: Callable[[], object]) -> None:
    while True:
        work()


def test_requests_lose_no_lane(shop_path: Path, shop: Any) -> None:
    request = shop.request(4)
    with Runtime.load(shop_path) as runtime:
        want = runtime.run(request)["score"]
        for _ in range(600):
            soon(5e-4, lambda: again(lambda: runtime.run(request)))
            assert len(runtime._lanes.free) == 1
        np.testing.assert_array_equal(runtime.run(request)["score"], want)


def test_submitting_leaves_the_queue_open(shop_path: Path, shop: Any) -> None:
    request = shop.request(4)
    with Runtime.load(shop_path) as runtime:
        want = runtime.run(request)["score"]
        for _ in range(300):
            soon(2e-4, lambda: again(lambda: runtime.submit(request)))
            np.testing.assert_array_equal(runtime.submit(request).result(10)["score"], want)


def test_who_waits_for_a_future_holds_up_no_lane(shop_path: Path, shop: Any) -> None:
    request = shop.request(4)
    with Runtime.load(shop_path) as runtime:
        want = runtime.run(request)["score"]
        for _ in range(600):
            # Which `Condition.wait` makes of an interrupt between two of its steps.
            with suppress(RuntimeError):
                soon(5e-4, lambda: again(lambda: runtime.submit(request).result()))
        np.testing.assert_array_equal(runtime.submit(request).result(10)["score"], want)


def test_borrows_lose_no_lane(shop_path: Path, shop: Any) -> None:
    request = shop.request(4)

    def borrow() -> None:
        with runtime.borrow(4) as borrowed:
            for name, view in borrowed.inputs.items():
                view[:] = request[name]
            borrowed.run()

    with Runtime.load(shop_path) as runtime:
        left_open = 0
        for _ in range(600):
            soon(5e-4, lambda: again(borrow))
            try:
                runtime.run(request)
            except BorrowError:  # it came as the block was left, which one is told
                left_open += 1
                runtime._lending.end_mine()
            assert len(runtime._lanes.free) == 1
            assert not runtime._lending.borrowers
        assert left_open < 60


def test_closing_ends_while_the_interrupt_is_on_its_way(shop_path: Path, shop: Any) -> None:
    """The frames of its traceback keep what they had."""
    request = shop.request(4)
    for at in range(40):
        ended = threading.Event()
        stuck = threading.Timer(20, lambda ended=ended: ended.is_set() or signal.alarm(1))
        stuck.start()
        try:
            with Runtime.load(shop_path) as runtime:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 2e-3))
                while True:
                    if at % 2:
                        runtime.run(request)
                        continue
                    with runtime.borrow(4) as borrowed:
                        for name, view in borrowed.inputs.items():
                            view[:] = request[name]
                        borrowed.run()
        except Interrupted:
            pass
        assert runtime._lanes._ended is not None
        ended.set()
        stuck.cancel()


def test_weights_are_written_wholly_or_not(shop_path: Path, shop: Any) -> None:
    request = shop.request(4)
    first = {name: tensor.clone() for name, tensor in shop.state_dict().items()}
    second = {name: tensor * 0.5 for name, tensor in first.items()}
    with Runtime.load(shop_path) as runtime:
        known = runtime.weights()
        states = [{k: v for k, v in state.items() if k in known} for state in (first, second)]
        wanted = []
        for state in states:
            runtime.update_weights(state)
            wanted.append(runtime.run(request)["score"])
        seen = set()
        for turn in range(300):
            soon(1e-3, lambda turn=turn: runtime.update_weights(states[turn % 2]))
            got = runtime.run(request)["score"]
            matches = [np.array_equal(got, want) for want in wanted]
            assert any(matches)
            seen.add(matches.index(True))
            assert len(runtime._lanes.free) == 1
            assert runtime._lanes._gate is None
        assert seen == {0, 1}


# Work on a thread


def test_what_is_interrupted_ends_first() -> None:
    done = []

    def work() -> None:
        threading.Event().wait(0.3)
        done.append(threading.current_thread())

    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)  # and again
    with pytest.raises(Interrupted):
        not_interrupted(work)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(done) == 1
    assert done[0] is not threading.main_thread()


def test_what_it_raises_is_raised() -> None:
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        on_a_thread(work)


def test_other_threads_do_it_themselves() -> None:
    found = []
    thread = threading.Thread(
        target=lambda: not_interrupted(lambda: found.append(threading.current_thread()))
    )
    thread.start()
    thread.join()
    assert found == [thread]


def test_a_thread_has_as_many_as_its_caller() -> None:
    found = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    on_a_thread(lambda: found.append(torch.get_num_threads()))
    torch.set_num_threads(before)
    assert found == [1]
