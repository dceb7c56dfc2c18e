"""Requests written straight into staging memory: what `Runtime.borrow` hands out."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.runtime.errors import BorrowError

if TYPE_CHECKING:
    from recreplay.runtime.lane import Prepared

Array = np.ndarray[Any, Any]


class Borrow:
    """The staging memory of one bucket, for one request of n rows, until the `with` block ends.

    Nobody else replays meanwhile, so fill and run without delay. Rows from n on are the runtime's.
    """

    __slots__ = ("_open", "_prepared", "_release", "_run", "inputs")

    def __init__(
        self,
        prepared: Prepared,
        run: Callable[[Prepared], dict[str, Array]],
        release: Callable[[], None],
    ) -> None:
        self._prepared = prepared
        self._run = run
        self._release = release
        self._open = True
        # Views `[n, ...]` by input name, of exactly the captured dtypes: numpy casts what is
        # assigned to them, a float to an int without a word. They hold what the request before
        # left in them, and belong to somebody else once the block has ended.
        self.inputs: dict[str, Array] = prepared.inputs

    def run(self) -> dict[str, Array]:
        """Check ids, pad, replay; new arrays `[n, ...]` by output name. May be called again."""
        if not self._open:
            raise BorrowError("this borrow has ended; call run inside of its `with` block")
        return self._run(self._prepared)

    def __enter__(self) -> Borrow:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open:
            self._open = False
            self._release()
