"""The replays of a runtime, timed one by one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recreplay.runtime.devices.base import Launch
    from recreplay.runtime.lane import Lane, Lent, Prepared
    from recreplay.runtime.room import Room


class TimedLane:
    """A lane whose replays are timed, for a runtime to use in place of the lane itself.

    The difference of a run and its own replay is small and steady; the difference of two medians
    that were measured apart drowns in their noise.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.metrics, self.own_tensor, self.needed = lane.metrics, lane.own_tensor, lane.needed
        self.replay_ns: list[int] = []
        # Made once each, as those of the lane are.
        self.prepare = cache(lambda n: self._timed(lane.prepare(n)))
        self.prepare_in = cache(lambda size, n: self._timed(lane.prepare_in(size, n)))
        self.lend = cache(lambda n: self._lent(lane.lend(n)))

    def lend_room(self, room: Room) -> Lent:
        plain = self._lane.lend_room(room)
        prepared = self.prepare_in(plain.prepared.bucket, plain.prepared.rows)
        return replace(plain, prepared=prepared)

    def _lent(self, plain: Lent) -> Lent:
        return replace(plain, prepared=self.prepare(plain.prepared.rows))

    def _timed(self, plain: Prepared) -> Prepared:
        return replace(plain, replay=_timed(plain.replay, self.replay_ns.append))

    def close(self) -> None:
        self._lane.close()


def _timed(replay: Launch, note: Callable[[int], None]) -> Launch:
    """With as little as can be around it: what the clock costs after a replay, when the caches are
    empty, would be counted as the runtime's."""
    clock = time.perf_counter_ns

    def timed() -> None:
        begun = clock()
        replay()
        note(clock() - begun)

    return timed
