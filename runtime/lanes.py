"""The lanes of a runtime: whoever replays takes one, and writers of weights take all of them.

Taking a lane is the only locking that a request pays for. A writer closes the gate, waits until
every lane has come back, writes, and opens it: no replay sees half of a write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from recreplay.runtime.errors import LanesLostError, RecReplayError, RuntimeClosedError
from recreplay.runtime.metrics import Metrics, total

if TYPE_CHECKING:
    from recreplay.runtime.lane import Lane

_LOOK_AGAIN = 0.05  # seconds; how long a writer waits before it asks whether a lane was retired
CLOSED = "this Runtime was closed; load the artifact again"


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
        self._free: SimpleQueue[Lane | None] = SimpleQueue()  # None: no lane will ever come
        self._alive = len(lanes)
        self._make, self._prove = make, prove
        self._gate: threading.Event | None = None
        self._writer = threading.Lock()
        self._counts = threading.Lock()
        self._ended: RecReplayError | None = None
        self._metrics = [lane.metrics for lane in lanes]
        self.rebuilt = self.retired = 0
        for lane in lanes:
            self._free.put(lane)

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
        lane = self._free.get()
        if lane is None:
            self._free.put(None)
            assert self._ended is not None
            raise self._ended
        return lane

    def put(self, lane: Lane) -> None:
        self._free.put(lane)

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
                try:
                    lane = self._free.get(timeout=_LOOK_AGAIN)
                except Empty:
                    continue
                if lane is None:
                    self._free.put(None)
                    assert self._ended is not None
                    raise self._ended
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

    def _end(self, why: RecReplayError) -> None:
        self._ended = why
        self._free.put(None)
