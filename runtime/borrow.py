"""Requests written straight into staging memory: what `Runtime.borrow` hands out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import get_ident
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from recreplay.runtime.errors import BorrowError, ReplayError
from recreplay.runtime.lanes import LanePool, Lease
from recreplay.runtime.replay import Replayer
from recreplay.runtime.room import Room, Rooms

if TYPE_CHECKING:
    from recreplay.runtime.lane import Lent

Array = np.ndarray[Any, Any]


class Views(dict[str, Array]):
    """Views of staging memory by input name. What takes the place of one would be read by nobody,
    so only their contents can be written."""

    def _refuse(self, *given: object, **named: object) -> NoReturn:
        raise BorrowError(
            "inputs of a borrow are memory to be written into; write inputs[name][:] = values, "
            "not inputs[name] = values"
        )

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


class Lending:
    """Lanes on loan, and the threads that have one."""

    def __init__(
        self, lanes: LanePool, replayer: Replayer, rooms: Rooms, failed: Callable[[], None]
    ) -> None:
        self.lanes, self.replayer, self.failed = lanes, replayer, failed
        self._rooms = rooms
        # By thread. Look here first: without any, nobody is refused.
        self.borrowers: dict[int, Borrow] = {}

    def refuse_borrowers(self) -> None:
        """Raise BorrowError where this thread holds a borrow, and would wait for itself."""
        mine = self.borrowers.get(get_ident())
        if mine is None:
            return
        if mine.has_ended():
            del self.borrowers[get_ident()]
            return
        raise BorrowError(
            "this thread holds a borrow and would wait for itself; end its `with` block first, or "
            "call its end() where an interrupt came as the block was left"
        )

    def end_mine(self) -> None:
        """End the borrow of this thread, if it has one."""
        mine = self.borrowers.get(get_ident())
        if mine is not None:
            mine.end()

    def room(self, n: int, values: Mapping[str, int] | None, users: int) -> Room | int:
        """A number of rows where that says it all. Raises BorrowError where no bucket holds it."""
        if self.replayer.by_rows and not values and users == 1:
            return self._rooms.rows(n)
        return self._rooms.find(n, values or {}, users)


class Borrow:
    """The staging memory of one bucket, for one request, while its `with` block lasts.

    Nobody else replays on it meanwhile, so fill and run without delay. What lies behind the items
    of the request is the runtime's.
    """

    __slots__ = ("_ended", "_lease", "_lending", "_lent", "_moved", "_owner", "_room", "inputs")
    # Views by input name, of as many items as were asked for and of exactly the captured dtypes:
    # numpy casts what is assigned to them, a float to an int without a word. They hold what the
    # request before left in them, and belong to somebody else once the block has ended. Of ids that
    # are staged narrower they are memory beside it, which `run` reads: narrowed by an assignment,
    # 2**32 + 5 would become 5.
    inputs: dict[str, Array]

    def __init__(
        self, lending: Lending, n: int, values: Mapping[str, int] | None, users: int
    ) -> None:
        """See `Runtime.borrow`."""
        if lending.borrowers:
            lending.refuse_borrowers()
        # What is usual is told apart here: each further call costs more after a replay.
        replayer = lending.replayer
        usual = type(n) is int and 1 <= n <= replayer.largest
        usual = usual and replayer.by_rows and not values and users == 1
        self._room: Room | int = n if usual else lending.room(n, values, users)
        self._lending = lending
        self._lease: Lease | None = None
        self._ended = "this borrow has not begun; use it as `with runtime.borrow(n) as request:`"

    def __enter__(self) -> Borrow:
        lending = self._lending
        if lending.borrowers:
            lending.refuse_borrowers()
        lease = lending.lanes.take()
        try:
            room, lane = self._room, lease.lane
            self._lent: Lent
            if isinstance(room, int):
                self._lent, self._moved = lane.lend(room), 0
            else:
                self._lent, self._moved = lane.lend_room(room), int(room.moved)
            self.inputs = self._lent.inputs
            self._owner = get_ident()
            self._lease = lease
            lending.borrowers[self._owner] = self
            return self
        except BaseException:
            self._lease = None
            lending.lanes.free.append(lease)  # by C, before an interrupt can come
            lending.lanes.wake()
            raise

    def __getattr__(self, name: str) -> NoReturn:  # `inputs`, before the block begins
        raise BorrowError(self._ended) if name == "inputs" else AttributeError(name)

    def run(self) -> dict[str, Array]:
        """Check what was written, pad, replay; new arrays `[n, ...]` by output name. May be called
        again."""
        lease, lending = self._lease, self._lending
        if lease is None:
            raise BorrowError(self._ended)
        lane = lease.lane
        lent = self._lent
        prepared = lent.prepared
        try:
            results = lending.replayer.launch(lane, prepared, prepared.replay, lent.fill())
        except BaseException as error:
            lending.failed()
            if isinstance(error, ReplayError):
                self._lease = None
                self._ended = "the lane of this borrow failed and was given back; borrow again"
                lending.borrowers.pop(self._owner, None)
                lending.lanes.mend(lease)
            raise
        lane.metrics.requests += 1
        lane.metrics.capacity_moves += self._moved
        return results

    def end(self, *error: object) -> None:
        """Give the lane back, as the end of the `with` block does. Ending twice is fine."""
        lease, lending = self._lease, self._lending
        if lease is not None:
            self._lease = None
            self._ended = "this borrow has ended; call run inside of its `with` block"
            lending.lanes.free.append(lease)  # by C, before an interrupt can come
            lending.borrowers.pop(self._owner, None)
            lending.lanes.wake()

    __exit__ = end  # and not a call of it: see above

    def has_ended(self) -> bool:
        return self._lease is None
