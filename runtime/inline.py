"""Requests of coroutines that are answered where they come: on the thread of their event loop.

To hand a request to the thread of a lane, and its answer back, takes two wake-ups and the
interpreter twice; a small replay is over before the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recreplay.runtime.borrow import Lending
    from recreplay.runtime.lanes import LanePool, Lease
    from recreplay.runtime.replay import Replayer


class Inline:
    """Finds lanes for requests of up to `rows` rows, where one is free and nobody waits for it."""

    def __init__(self, lanes: LanePool, lending: Lending, replayer: Replayer) -> None:
        self._lanes, self._lending, self._replayer = lanes, lending, replayer
        self.rows = 0

    def lease(self, values: Sequence[Any], n: int) -> Lease | None:
        """A lane for checked values of `n` rows; None where they are for a lane's thread."""
        # A thread that has a borrow may wait for itself, if it takes another lane.
        if n > self.rows or self._lending.borrowers:
            return None
        lease = self._lanes.take_free()
        if lease is None or self._replayer.fits(lease.lane, values, self.rows):
            return lease
        self._lanes.put(lease)
        return None
