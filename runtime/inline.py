"""Requests of coroutines that are answered where they come: on the thread of their event loop.

To hand a request to the thread of a lane, and its answer back, takes two wake-ups and the
interpreter twice; a small replay is over before the first of them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.runtime.errors import ReplayError

if TYPE_CHECKING:
    from recreplay.runtime.borrow import Lending
    from recreplay.runtime.lanes import LanePool
    from recreplay.runtime.replay import Replayer

Array = np.ndarray[Any, Any]


class Inline:
    """Answers requests of up to `rows` rows, where a lane is free and nobody waits for one."""

    def __init__(self, lanes: LanePool, lending: Lending, replayer: Replayer) -> None:
        self._lanes, self._lending, self._replayer = lanes, lending, replayer
        self.rows = 0

    def answer(self, values: Sequence[Any], n: int) -> dict[str, Array] | None:
        """The outputs of checked values; None where they are for a lane's thread. Raises what a
        replay does."""
        # A thread that has a borrow may wait for itself, if it takes another lane.
        if n > self.rows or self._lending.borrowers:
            return None
        lane = self._lanes.take_free()
        if lane is None:
            return None
        try:
            if not self._replayer.fits(lane, values, self.rows):
                self._lanes.put(lane)
                return None
            outputs = self._replayer.replay(lane, values, n)
            lane.metrics.requests += 1
        except ReplayError:
            # To make a lane anew takes longer than a loop may stand still.
            threading.Thread(target=self._lanes.mend, args=(lane,), name="recreplay-mend").start()
            raise
        except BaseException:
            self._lanes.put(lane)
            raise
        self._lanes.put(lane)
        return outputs
