"""The lanes of a runtime: whoever replays takes one, and writers of weights take all of them.

A request takes a lane off a list and puts it back, and locks nothing unless there is none. Then
threads stand in line, and are woken one by one. A thread that runs may be sooner than one that
wakes up, which keeps lanes busy, but only until the first in line has waited for 5 ms: else one
thread would take the same lane again and again, and the others never. A writer closes the gate,
waits until every lane has come back, writes, and opens it: no replay sees half of a write.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING

from recreplay.runtime.errors import LanesLostError, RecReplayError, RuntimeClosedError
from recreplay.runtime.metrics import Metrics, total

if TYPE_CHECKING:
    from recreplay.runtime.lane import Lane

_PATIENCE = 0.005  # seconds that the first in line lets others pass: as long as Python's own lock
_LOOK_AGAIN = 0.05  # seconds; how long a writer waits before it asks whether a lane was retired
CLOSED = "this Runtime was closed; load the artifact again"


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
        self._free = list(lanes)
        self._line: deque[_Place] = deque()
        self._moving = threading.Lock()  # of the line
        self._alive = len(lanes)
        self._make, self._prove = make, prove
        self._gate: threading.Event | None = None
        self._writer = threading.Lock()
        self._counts = threading.Lock()
        self._ended: RecReplayError | None = None
        self._metrics = [lane.metrics for lane in lanes]
        self.rebuilt = self.retired = 0

    @property
    def alive(self) -> int:
        return self._alive

    def take(self) -> Lane:
        """A lane for this thread alone; give it back by `put` or `mend`. Waits for one.

        Raises RuntimeClosedError, or LanesLostError when the last lane was retired.
        """
        gate = self._gate
        if gate is not None:
            gate.wait()
        try:
            if not self._line or monotonic() - self._line[0].since < _PATIENCE:
                return self._free.pop()
        except IndexError:  # there is none, or the line has gone meanwhile
            pass
        lane = self._stand_in_line()
        assert lane is not None  # without a timeout
        return lane

    def take_free(self) -> Lane | None:
        """The same where nobody has to wait for it; None elsewhere."""
        if self._gate is not None or self._line:
            return None
        try:
            return self._free.pop()
        except IndexError:
            return None

    def put(self, lane: Lane) -> None:
        self._free.append(lane)
        # Whoever waits stands in line before he looks for the last time: he is seen or sees it.
        if self._line:
            with self._moving:
                self._wake_first()

    def mend(self, lane: Lane) -> None:
        """Give back a lane whose replay failed: as it is if it still answers right, else made anew;
        a lane that cannot be made anew is retired."""
        try:
            self._prove(lane)
        except Exception:
            self._rebuild(lane)
        else:
            self.put(lane)

    def _rebuild(self, lane: Lane) -> None:
        try:
            lane.close()
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
            self.put(made)

    @contextmanager
    def all_idle(self) -> Iterator[None]:
        """Inside, no lane replays: those that run are waited for, and new requests wait."""
        with self._writer:
            taken = self._collect()
            try:
                yield
            finally:
                self._open(taken)

    def close(self) -> None:
        """Wait for the lanes that run, and close all. Closing twice is fine."""
        with self._writer:
            if isinstance(self._ended, RuntimeClosedError):
                return
            try:
                lanes = self._collect()
            except LanesLostError:
                lanes = []
            self._end(RuntimeClosedError(CLOSED))
            self._open([])
            for lane in lanes:
                lane.close()

    def metrics(self) -> Metrics:
        """Counters of all lanes since load; those of retired lanes count as well."""
        return total(self._metrics)

    def _collect(self) -> list[Lane]:
        self._gate = threading.Event()
        taken: list[Lane] = []
        try:
            while len(taken) < self._alive:
                lane = self._stand_in_line(_LOOK_AGAIN)
                if lane is not None:
                    taken.append(lane)
        except BaseException:  # an interrupt, too, leaves the runtime serving
            self._open(taken)
            raise
        return taken

    def _open(self, lanes: Sequence[Lane]) -> None:
        """Give lanes back that were collected, and let requests in again."""
        for lane in lanes:
            self.put(lane)
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.set()

    def _stand_in_line(self, timeout: float = -1.0) -> Lane | None:
        """The next lane that comes back when it is this thread's turn; None after `timeout` seconds
        without one. Raises what ended the pool."""
        place = _Place()
        with self._moving:
            self._line.append(place)
        try:
            while True:
                with self._moving:
                    if self._ended is not None:
                        raise self._ended
                    if self._line[0] is place:
                        with suppress(IndexError):  # none is free
                            return self._free.pop()
                if not place.sleep(timeout):
                    return None
        finally:
            with self._moving:
                self._line.remove(place)
                if self._free:
                    self._wake_first()

    def _wake_first(self) -> None:
        if self._line:
            self._line[0].wake()

    def _end(self, why: RecReplayError) -> None:
        self._ended = why
        with self._moving:
            for place in self._line:
                place.wake()
