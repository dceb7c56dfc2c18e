"""Who waits for an answer: a thread for a future, or a coroutine for its event loop.

A loop is woken by a write into a pipe of its own, which hands the interpreter over: as long as a
small replay takes. So the answers of a pack, and all that come before a loop has looked, are one
letter to it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import numpy as np

Outputs = dict[str, np.ndarray[Any, Any]]
S = TypeVar("S")
T = TypeVar("T")


class _Condition(type(threading.RLock())):  # type: ignore[misc]
    """`threading.Condition`, whose lock is entered by C: an interrupt within its own `__enter__`,
    which is Python, leaves it locked for good, and whoever answers waits for it with a lane."""

    def __init__(self) -> None:
        self._waiters: deque[Any] = deque()

    wait = threading.Condition.wait
    notify = threading.Condition.notify
    notify_all = threading.Condition.notify_all


def new_future() -> Future[Any]:
    """One whose `result` may be interrupted."""
    future: Future[Any] = Future()
    future._condition = _Condition()
    return future


def hand_on(asked: Future[S], answer: Future[T], made: Callable[[S], T]) -> None:
    """Give `answer`, which is running, what `made` makes of the result of `asked`, or its error."""
    error = asked.exception()
    if error is None:
        answer.set_result(made(asked.result()))
    else:
        answer.set_exception(error)


def cancel_with(answer: Future[Any], asked: Future[Any]) -> None:
    """What nobody waits for any more is not replayed."""
    answer.add_done_callback(lambda answer: answer.cancelled() and asked.cancel())


class Promise(Protocol):
    """Of one answer, which is given or failed once."""

    def start(self) -> bool:
        """False where nobody waits any more. Asked once, before a replay."""

    def give(self, outputs: Outputs) -> None:
        """Who waits may learn of it by `wake` only."""

    def fail(self, error: BaseException) -> None:
        """The same."""

    def wake(self) -> None:
        """Let who waits go on. May be called at any time, and again."""


class ThreadPromise:
    """Kept by a future, which tells at once."""

    def __init__(self) -> None:
        self.future: Future[Outputs] = new_future()
        self.start = self.future.set_running_or_notify_cancel
        self.give = self.future.set_result
        self.fail = self.future.set_exception

    def wake(self) -> None:
        """There is nothing left to do."""


class Mailbox:
    """What threads have for the coroutines of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._letters: deque[tuple[asyncio.Future[Outputs], Outputs | BaseException]] = deque()
        self._called = False  # the loop looks soon

    def put(self, future: asyncio.Future[Outputs], found: Outputs | BaseException) -> None:
        self._letters.append((future, found))

    def call(self) -> None:
        """Have the loop look. Whoever finds it called had put his letter before it looks."""
        if self._called or not self._letters:
            return
        self._called = True
        with suppress(RuntimeError):  # the loop was closed, and nobody waits any more
            self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False
        while self._letters:
            future, found = self._letters.popleft()
            if future.done():  # cancelled
                continue
            if isinstance(found, BaseException):
                future.set_exception(found)
            else:
                future.set_result(found)


class LoopPromise:
    """Kept by a future of asyncio's."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.future: asyncio.Future[Outputs] = mailbox.loop.create_future()
        self._mailbox = mailbox
        self.wake = mailbox.call

    def start(self) -> bool:
        return not self.future.cancelled()

    def give(self, outputs: Outputs) -> None:
        self._mailbox.put(self.future, outputs)

    def fail(self, error: BaseException) -> None:
        self._mailbox.put(self.future, error)


class _Here(threading.local):
    mailbox: Mailbox | None = None


_here = _Here()


def mailbox_here() -> Mailbox:
    """Of the loop that this thread runs."""
    loop = asyncio.get_running_loop()
    mailbox = _here.mailbox
    if mailbox is None or mailbox.loop is not loop:
        mailbox = _here.mailbox = Mailbox(loop)
    return mailbox
