"""The lanes of a runtime: whoever replays takes one, and writers of weights take all of them.

A request takes a lane off a list and puts it back, and locks nothing unless there is none. Then
threads stand in line, and are woken one by one. A thread that runs may be sooner than one that
wakes up, which keeps lanes busy, but only until the first in line has waited for 5 ms: else one
thread would take the same lane again and again, and the others never. A writer closes the gate,
waits until every lane has come back, writes, and opens it: no replay sees half of a write.

Ctrl-C may come between any two calls of Python. A lane that nobody has any more then comes back by
itself (`Lease`), and whoever has one gives it back by a call of C: `free.append`, then `wake`.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from recreplay.runtime.errors import LanesLostError, RecReplayError, RuntimeClosedError
from recreplay.runtime.metrics import Metrics, total
from recreplay.runtime.uninterrupted import on_a_thread

if TYPE_CHECKING:
    from recreplay.runtime.lane import Lane

_PATIENCE = 0.005  # seconds that the first in line lets others pass: as long as Python's own lock
_LOOK_AGAIN = 0.05  # seconds; how long a writer waits before it asks whether a lane was retired
_LOST = 1.0  # seconds; how long others wait before they look whether they were to be woken
CLOSED = "this Runtime was closed; load the artifact again"


class Lease:
    """A lane, for whoever has taken this. One that is dropped and not given back, as by an
    interrupt, is given back by another in its place."""

    __slots__ = ("_pool", "lane")

    def __init__(self, lane: Lane, pool: LanePool) -> None:
        self.lane = lane
        # Nothing comes back to a pool that has gone itself.
        self._pool: weakref.ref[LanePool] | None = weakref.ref(pool)

    def end(self) -> None:
        """Of a lane that is not to come back."""
        self._pool = None

    def __del__(self) -> None:
        pool = None if self._pool is None else self._pool()
        if pool is not None:
            pool.take_back(self.lane)


class _Place:
    """In the line of threads that found no lane."""

    __slots__ = ("_asleep", "since")

    def __init__(self) -> None:
        self.since = monotonic()
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def sleep(self, timeout: float) -> bool:
        """Until it is woken, or was meanwhile; False where the time was up before."""
        return self._asleep.acquire(timeout=timeout)

    def wake(self) -> None:
        """Called by one thread at a time."""
        if self._asleep.locked():
            self._asleep.release()


class LanePool:
    """Lanes that are free, and what to do with one that failed.

    `make` loads one more lane. `prove` replays a stored request on a lane and raises a
    RecReplayError if the answer is wrong.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        make: Callable[[], Lane],
        prove: Callable[[Lane], None],
    ) -> None:
        # Whoever takes one takes the last that came back, whose memory is in the caches still.
        self.free = [Lease(lane, self) for lane in lanes]
        self._ended: RecReplayError | None = None
        self._line: deque[_Place] = deque()
        self._moving = threading.Lock()  # of the line
        self._alive = len(lanes)
        self._make, self._prove = make, prove
        self._gate: threading.Event | None = None
        self._writer = threading.Lock()
        self._counts = threading.Lock()
        self._metrics = [lane.metrics for lane in lanes]
        self.rebuilt = self.retired = 0

    @property
    def alive(self) -> int:
        return self._alive

    def take(self) -> Lease:
        """A lane for this thread alone; give it back by `put` or `mend`. Waits for one.

        Raises RuntimeClosedError, or LanesLostError when the last lane was retired.
        """
        gate = self._gate
        if gate is not None:
            gate.wait()
        try:
            if not self._line or monotonic() - self._line[0].since < _PATIENCE:
                return self.free.pop()
        except IndexError:  # there is none, or the line has gone meanwhile
            pass
        lease = self._stand_in_line(None)
        assert lease is not None  # without a timeout
        return lease

    def take_free(self) -> Lease | None:
        """The same where nobody has to wait for it; None elsewhere."""
        if self._gate is not None or self._line:
            return None
        try:
            return self.free.pop()
        except IndexError:
            return None

    def put(self, lease: Lease) -> None:
        self.free.append(lease)
        self.wake()

    def wake(self) -> None:
        """After a lane was given back."""
        # Whoever waits stands in line before he looks for the last time: he is seen or sees it.
        if self._line:
            with self._moving, suppress(IndexError):  # whoever was in line has left it meanwhile
                self._line[0].wake()

    def take_back(self, lane: Lane) -> None:
        """A lane whose lease is no more. May be called anywhere, so it takes no lock: who waits in
        line looks again by himself."""
        if self._ended is None:
            self.free.append(Lease(lane, self))

    def mend(self, lease: Lease) -> None:
        """Give back a lane whose replay failed: as it is if it still answers right, else made anew;
        a lane that cannot be made anew is retired. On a thread of its own: the caller's may have
        modes of torch, and be interrupted."""
        on_a_thread(partial(self._mend, lease))

    def _mend(self, lease: Lease) -> None:
        try:
            self._prove(lease.lane)
        except Exception:
            self._rebuild(lease)
        else:
            self.put(lease)

    def _rebuild(self, lease: Lease) -> None:
        lease.end()
        try:
            lease.lane.close()
            made = self._make()
            self._metrics.append(made.metrics)
            self._prove(made)
        except Exception as error:
            with self._counts:
                self.retired += 1
                self._alive -= 1
                last = not self._alive
            if last:
                self._end(
                    LanesLostError(
                        f"the last lane failed and could not be made anew ({error}); load the "
                        "artifact again, in a new process if it is on a GPU"
                    )
                )
        else:
            with self._counts:
                self.rebuilt += 1
            self.put(Lease(made, self))

    @contextmanager
    def all_idle(self) -> Iterator[None]:
        """Inside, no lane replays: those that run are waited for, and new requests wait."""
        with self._writer:
            taken: list[Lease] = []
            try:
                self._collect(taken)
                yield
            finally:
                self._open(taken)

    def close(self) -> None:
        """Wait for the lanes that run, and close all. Closing twice is fine."""
        with self._writer:
            if isinstance(self._ended, RuntimeClosedError):
                return
            taken: list[Lease] = []
            try:
                with suppress(LanesLostError):
                    self._collect(taken)
            except BaseException:  # an interrupt leaves the runtime serving
                self._open(taken)
                raise
            self._end(RuntimeClosedError(CLOSED))
            self._open([])
            for lease in taken:
                lease.lane.close()

    def metrics(self) -> Metrics:
        """Counters of all lanes since load; those of retired lanes count as well."""
        return total(self._metrics)

    def _collect(self, taken: list[Lease]) -> None:
        """Close the gate, and take all lanes."""
        self._gate = threading.Event()
        while len(taken) < self._alive:
            lease = self._stand_in_line(_LOOK_AGAIN)
            if lease is not None:
                taken.append(lease)

    def _open(self, taken: Sequence[Lease]) -> None:
        """Give lanes back that were collected, and let requests in again."""
        for lease in taken:
            self.put(lease)
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.set()

    def _stand_in_line(self, timeout: float | None) -> Lease | None:
        """The next lane that comes back when it is this thread's turn; None after `timeout` seconds
        without one. Raises what ended the pool."""
        place = _Place()
        try:
            self._line.append(place)
            while True:
                with self._moving:
                    if self._ended is not None:
                        raise self._ended
                    if self._line[0] is place:
                        with suppress(IndexError):  # none is free
                            return self.free.pop()
                if not place.sleep(_LOST if timeout is None else timeout) and timeout is not None:
                    return None
        finally:
            try:  # noqa: SIM105 - by C, before an interrupt can come, which `suppress` may be late for
                self._line.remove(place)
            except ValueError:
                pass  # one came before it was in line
            if self.free:
                self.wake()

    def _end(self, why: RecReplayError) -> None:
        self._ended = why
        with self._moving:
            for place in list(self._line):
                place.wake()
