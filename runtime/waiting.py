"""Requests that wait: a bounded queue from which lanes take one, or as many as one replay holds."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from operator import sub
from typing import Any

import numpy as np

from recreplay.runtime.batching import Piece, join
from recreplay.runtime.caller_stream import Wait
from recreplay.runtime.errors import DeadlineExceeded, Overloaded, RuntimeClosedError
from recreplay.runtime.lanes import CLOSED
from recreplay.runtime.promises import Promise

Array = np.ndarray[Any, Any]
_WAKING = 100e-6  # seconds that a timed wait of a thread ends late, as measured on Linux


class Reply:
    """The answer to one request, from as many parts as it was cut into."""

    def __init__(self, promise: Promise, parts: int) -> None:
        self._promise = promise
        self._parts: list[dict[str, Array] | None] = [None] * parts
        self._left = parts
        self._lock = threading.Lock()
        self._started: bool | None = None  # False: it was cancelled before
        self._kept = False
        self.wake = promise.wake

    def start(self) -> bool:
        """False if nobody waits any more: the request was cancelled, or a part of it failed."""
        with self._lock:
            return self._is_live()

    def give(self, at: int, outputs: dict[str, Array]) -> None:
        """The outputs of part `at`; `wake` comes after it, for several replies at once."""
        with self._lock:
            self._parts[at] = outputs
            self._left -= 1
            if self._left or self._kept:
                return
            self._kept = True
        try:
            whole = join([part for part in self._parts if part is not None])
        except BaseException as error:  # there is no memory for it
            self._promise.fail(error)
            return
        self._promise.give(whole)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            if not self._is_live():
                return
            self._kept = True
        self._promise.fail(error)
        self.wake()

    def _is_live(self) -> bool:
        if self._started is None:  # which a promise is to be told once
            self._started = self._promise.start()
        return self._started and not self._kept


class Ticket:
    """A request, or part `at` of one, in the queue. Times are of `time.monotonic`, in seconds.

    `first_row`: the row of the request that row 0 of the part is. `settled`: what is to be called
    before its values are read.
    """

    __slots__ = ("arrived", "at", "due", "first_row", "piece", "reply", "settled")

    def __init__(
        self,
        piece: Piece,
        reply: Reply,
        at: int,
        arrived: float,
        due: float | None,
        first_row: int = 0,
        settled: Wait | None = None,
    ) -> None:
        self.piece, self.reply, self.at = piece, reply, at
        self.arrived, self.due, self.first_row = arrived, due, first_row
        self.settled = settled

    @property
    def rows(self) -> int:
        return self.piece.takes[0]


class WaitingLine:
    """First come, first served. `room`, of rows and of what else tickets take, and `delay`
    (seconds) say how tickets are packed; without a delay each is taken alone."""

    def __init__(
        self,
        limit: int,
        room: tuple[int, ...],
        delay: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._room, self._delay, self._clock = limit, room, delay, clock
        self._waiting: deque[Ticket] = deque()
        # Entered as itself: an interrupt within `Condition.__enter__`, which is Python, leaves it
        # locked for good.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._turn = threading.Lock()  # one lane fills a pack at a time, or two would share it
        self._closed = False
        self.overloaded = self.expired = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Add the parts of one request: all or none. Raises Overloaded or RuntimeClosedError."""
        with self._lock:
            if self._closed:
                raise RuntimeClosedError(CLOSED)
            # A request of many parts is let in where nothing waits, or it never could be.
            if self._waiting and len(self._waiting) + len(tickets) > self._limit:
                self.overloaded += 1
                raise Overloaded(
                    f"{len(self._waiting)} requests wait already and at most {self._limit} may "
                    "(max_queue); try again later, or send to another server"
                )
            self._waiting.extend(tickets)
            self._changed.notify(len(tickets))

    def take(self) -> list[Ticket] | None:
        """The next ticket, or tickets that there is room for in a pack; None when closed and empty.
        Waits for the first one as long as it takes.

        Those that are late already are not among them: they are answered here.
        """
        while True:
            late: list[Ticket] = []
            with self._turn, self._lock:
                taken = self._fill(late)
            for ticket in late:
                ticket.reply.fail(_too_late(ticket, self._clock()))
            if taken or not late:
                return taken or None

    def _fill(self, late: list[Ticket]) -> list[Ticket]:
        first = self._next(None, self._room, late)
        if first is None:
            return []
        taken, room = [first], _without(self._room, first)
        if self._delay is None:
            return taken
        until = first.arrived + max(0.0, self._delay - _WAKING)
        if first.due is not None:
            until = min(until, first.due)
        while min(room) > 0:
            ticket = self._next(until, room, late)
            if ticket is None:
                break
            taken.append(ticket)
            room = _without(room, ticket)
        return taken

    def expire(self, ticket: Ticket) -> bool:
        """Whether a ticket is late; it is answered so then."""
        if not self._is_late(ticket):
            return False
        with self._lock:
            self.expired += 1
        ticket.reply.fail(_too_late(ticket, self._clock()))
        return True

    def _is_late(self, ticket: Ticket) -> bool:
        return ticket.due is not None and self._clock() > ticket.due

    def close(self) -> None:
        """Let nobody in any more. What waits is still taken."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def _next(
        self, until: float | None, room: tuple[int, ...], late: list[Ticket]
    ) -> Ticket | None:
        """The first ticket that is in time, waited for `until` then, or None.

        None also where it takes more than there is room for, unless it is to be the first of its
        pack, and where a late one was found, so that it is answered at once.
        """
        while True:
            while self._waiting:
                ticket = self._waiting[0]
                if self._is_late(ticket):
                    late.append(self._waiting.popleft())
                    self.expired += 1
                    continue
                if until is not None and min(_without(room, ticket)) < 0:
                    return None
                return self._waiting.popleft()
            if late or self._closed:
                return None
            left = None if until is None else until - self._clock()
            if left is not None and left <= 0:
                return None
            self._changed.wait(left)


def _without(room: tuple[int, ...], ticket: Ticket) -> tuple[int, ...]:
    """What is left of the room."""
    return tuple(map(sub, room, ticket.piece.takes))


def _too_late(ticket: Ticket, now: float) -> DeadlineExceeded:
    assert ticket.due is not None
    waited, allowed = now - ticket.arrived, ticket.due - ticket.arrived
    return DeadlineExceeded(
        f"the request waited {waited * 1e6:.0f} µs for a lane and was to wait at most "
        f"{allowed * 1e6:.0f} µs; it was not replayed"
    )
