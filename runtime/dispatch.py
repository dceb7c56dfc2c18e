"""Requests that are submitted: from the queue onto lanes, packed or cut on the way."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.runtime.batching import Batching, Convert, Piece, RowBatching, unpack
from recreplay.runtime.caller_stream import Wait, settle
from recreplay.runtime.errors import InputError, RecReplayError
from recreplay.runtime.inline import Inline
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.mixed import is_mixed
from recreplay.runtime.mixed_batching import MixedBatching
from recreplay.runtime.promises import LoopPromise, Promise, ThreadPromise, mailbox_here
from recreplay.runtime.serving import Serving
from recreplay.runtime.waiting import Reply, Ticket, WaitingLine

if TYPE_CHECKING:
    from recreplay.runtime.lanes import LanePool, Lease

Array = np.ndarray[Any, Any]
# Values of a request, its number of rows, how many requests that is, which row of the request the
# first one is, a lane, or None for the next that is free, and whether this thread is an event
# loop's: the outputs.
Answer = Callable[[Sequence[Any], int, int, int, "Lease | None", bool], dict[str, Array]]
_LOG = logging.getLogger(__name__)


@dataclass
class Dispatched:
    """Counters of the queue, written under the dispatcher's lock."""

    submitted: int = 0
    inline: int = 0  # of them, those that were answered where they came
    packs: int = 0  # replays that answered more than one request
    packed: int = 0  # requests that were answered so
    cut: int = 0  # requests that were cut into chunks
    queue_ns: int = 0  # that parts of requests waited in all
    replay_ns: int = 0  # that lanes worked for them in all


class Dispatcher:
    """Threads, one a lane, that take requests from a bounded queue."""

    def __init__(
        self,
        manifest: Manifest,
        serving: Serving,
        check: Callable[[Mapping[str, Any]], tuple[Sequence[Any], int]],
        convert: Convert,
        answer: Answer,
        failed: Callable[[], None],
        inline: Inline,
        lanes: LanePool,
    ) -> None:
        self._lanes = lanes
        self._check, self._answer, self._failed = check, answer, failed
        self._inline = inline
        self._serving = serving
        self._batching = batching = _batching(manifest, serving, convert)
        room = (manifest.buckets[-1].size,) if batching is None else batching.room
        delay = serving.max_delay_us / 1e6 if serving.max_delay_us is not None else None
        self._line = WaitingLine(serving.max_queue, room, delay)
        self._lock = threading.Lock()
        self._counts = Dispatched()
        self._threads: list[threading.Thread] = []
        self._process = os.getpid()  # that they are of

    def submit(
        self, inputs: Mapping[str, Any], deadline_us: int | None
    ) -> Future[dict[str, Array]]:
        """Queue a request. Raises Overloaded or RuntimeClosedError; what is wrong with the request
        itself is raised by the future."""
        arrived, due = self._times(deadline_us)
        promise = ThreadPromise()
        try:
            values, n = self._check(inputs)
            values, settled = settle(values)
            pieces = self._pieces(values, n)
        except InputError as error:
            self._failed()
            promise.fail(error)
        else:
            self._queue(pieces, promise, arrived, due, settled)
        return promise.future

    async def arun(self, inputs: Mapping[str, Any], deadline_us: int | None) -> dict[str, Array]:
        """Answer a request here, or queue it."""
        arrived, due = self._times(deadline_us)
        try:
            values, n = self._check(inputs)
            lease = self._inline.lease(values, n)
            if lease is None:
                values, settled = settle(values)
                pieces = self._pieces(values, n)
            else:
                outputs = self._answer(values, n, 1, 0, lease, True)
        except BaseException:
            self._failed()
            raise
        if lease is None:
            promise = LoopPromise(mailbox_here())
            self._queue(pieces, promise, arrived, due, settled)
            return await promise.future
        spent = time.monotonic() - arrived
        with self._lock:
            self._counts.submitted += 1
            self._counts.inline += 1
            self._counts.replay_ns += int(spent * 1e9)
        return outputs

    def _times(self, deadline_us: int | None) -> tuple[float, float | None]:
        """Now, and until when a request may wait."""
        now = time.monotonic()
        if deadline_us is not None and (type(deadline_us) is not int or deadline_us < 1):
            raise RecReplayError(
                f"deadline_us is {deadline_us!r}; expected a whole number, 1 or more"
            )
        allowed = self._serving.deadline_us if deadline_us is None else deadline_us
        return now, None if allowed is None else now + allowed / 1e6

    def _pieces(self, values: Sequence[Any], n: int) -> Sequence[Piece]:
        batching = self._batching
        return [Piece(values, (n,))] if batching is None else batching.pieces(values, n)

    def _queue(
        self,
        pieces: Sequence[Piece],
        promise: Promise,
        arrived: float,
        due: float | None,
        settled: Wait | None,
    ) -> None:
        if self._threads and os.getpid() != self._process:
            raise RecReplayError(
                "this Runtime answered submitted requests before this process was forked, and its "
                "threads stayed in the other one; load it after the fork, or use `run`"
            )
        reply = Reply(promise, len(pieces))
        step = pieces[0].takes[0]
        with self._lock:
            if not self._threads:  # before anything waits: who closes now must find them
                self._start()
        self._line.put(
            [
                Ticket(piece, reply, at, arrived, due, at * step, settled)
                for at, piece in enumerate(pieces)
            ]
        )
        with self._lock:
            self._counts.submitted += 1
            self._counts.cut += len(pieces) > 1

    def stats(self) -> dict[str, int]:
        with self._lock:
            return {
                **asdict(self._counts),
                "waiting": len(self._line),
                "overloaded": self._line.overloaded,
                "expired": self._line.expired,
            }

    def close(self) -> None:
        """Let nothing more in, and return when what was let in has been answered."""
        with self._lock:
            threads = list(self._threads)
        _finish(self._line, threads)

    def _start(self) -> None:
        self._process = os.getpid()
        # Threads that a process ends under while they replay bring it down.
        weakref.finalize(self, _finish_at_exit, self._process, self._line, self._threads)
        for number in range(self._serving.lanes):
            thread = threading.Thread(
                target=self._work, name=f"recreplay-lane-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        import torch

        torch.set_num_threads(1)  # of this thread, which else would use every core
        while (tickets := self._line.take()) is not None:
            try:
                self._serve(tickets)
            except BaseException as error:  # the thread serves others after them
                for ticket in tickets:
                    self._failed()
                    _fail(ticket, error)

    def _serve(self, tickets: Sequence[Ticket]) -> None:
        """Answer tickets on the next lane that is free. Those that are late then, or that nobody
        waits for any more, are not replayed."""
        lease = self._lanes.take()
        begun = time.monotonic()
        live = [ticket for ticket in tickets if self._is_live(ticket)]
        if not live:
            self._lanes.put(lease)
        elif len(live) == 1:
            self._serve_one(live[0], lease)
        else:
            self._serve_pack(live, lease)
        spent = time.monotonic() - begun
        waited = sum(begun - ticket.arrived for ticket in live)
        with self._lock:
            self._counts.queue_ns += int(waited * 1e9)
            self._counts.replay_ns += int(spent * 1e9)

    def _is_live(self, ticket: Ticket) -> bool:
        if self._line.expire(ticket) or not ticket.reply.start():
            return False
        try:
            if ticket.settled is not None:
                ticket.settled()
        except BaseException as error:
            self._failed()
            _fail(ticket, error)
            return False
        return True

    def _serve_one(self, ticket: Ticket, lease: Lease | None) -> None:
        try:
            first = ticket.first_row
            outputs = self._answer(
                ticket.piece.values, ticket.rows, ticket.at == 0, first, lease, False
            )
        except BaseException as error:
            self._failed()
            _fail(ticket, error)
        else:
            _give(ticket, outputs)
            ticket.reply.wake()

    def _serve_pack(self, tickets: Sequence[Ticket], lease: Lease) -> None:
        rows = [ticket.rows for ticket in tickets]
        assert self._batching is not None
        try:
            packed = self._batching.pack([ticket.piece for ticket in tickets])
            requests = sum(ticket.at == 0 for ticket in tickets)
        except BaseException:
            self._serve_each(tickets, lease)
            return
        try:
            outputs = self._answer(packed, sum(rows), requests, 0, lease, False)
        except BaseException:
            self._serve_each(tickets, None)
            return
        with self._lock:
            self._counts.packs += 1
            self._counts.packed += len(tickets)
        for ticket, own in zip(tickets, unpack(outputs, rows), strict=True):
            _give(ticket, own)
        for ticket in tickets:
            ticket.reply.wake()

    def _serve_each(self, tickets: Sequence[Ticket], lease: Lease | None) -> None:
        """One of them may be at fault; by itself, it is told so and the others are answered."""
        for ticket in tickets:
            self._serve_one(ticket, lease)
            lease = None


def _give(ticket: Ticket, outputs: dict[str, Array]) -> None:
    try:
        ticket.reply.give(ticket.at, outputs)
    except BaseException:  # of what somebody wanted to be called
        _LOG.exception("a callback of a request ended by an exception")


def _fail(ticket: Ticket, error: BaseException) -> None:
    try:
        ticket.reply.fail(error)
    except BaseException:
        _LOG.exception("a callback of a request ended by an exception")


def _finish(line: WaitingLine, threads: Sequence[threading.Thread]) -> None:
    """Let nothing more in, and return when what was let in has been answered. A request's own
    callback does not wait for its thread."""
    line.close()
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()


def _finish_at_exit(process: int, line: WaitingLine, threads: Sequence[threading.Thread]) -> None:
    if os.getpid() == process:  # a fork has none of the threads
        _finish(line, threads)


def _batching(manifest: Manifest, serving: Serving, convert: Convert) -> Batching | None:
    """None where each request is served as it comes."""
    if serving.max_delay_us is None and serving.chunk_rows is None:
        return None
    most = manifest.buckets[-1].size
    if serving.chunk_rows is not None:
        most = min(most, serving.chunk_rows)
    if is_mixed(manifest):
        return MixedBatching(manifest, most, serving.chunk_rows, convert)
    return RowBatching(most, serving.chunk_rows, convert)


def can_pack(manifest: Manifest) -> bool:
    """Whether a replay has room for several requests: each has a user where there is a user side,
    and none is compared with others."""
    return manifest.users != 1 and manifest.row_mask is None


def check_serving(manifest: Manifest, serving: Serving) -> None:
    """Raise RecReplayError where the model cannot be served so: requests are packed by putting
    their users side by side, too."""
    for name in ("max_delay_us", "chunk_rows") if manifest.row_mask is not None else ():
        if getattr(serving, name) is not None:
            raise RecReplayError(
                f"{name} is {getattr(serving, name)}, but requests can be neither packed nor cut: "
                "the model was captured with a row mask, since it compares the rows of a request; "
                f"load without {name}"
            )
    if serving.max_delay_us is not None and not can_pack(manifest):
        raise RecReplayError(
            f"max_delay_us is {serving.max_delay_us}, but requests cannot be packed: the model was "
            "captured for one user a request; load without max_delay_us, or capture with more "
            "users"
        )
