"""A peer in the ring: it keeps its requests, answers one by number, and says how long it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from recreplay.tools.bench.peers.base import Arrays, Call, Loaded, Peer, Subject


class Contender(Protocol):
    """One loaded peer, here or in a process of its own."""

    name: str

    def prepare(self, requests: Sequence[Arrays]) -> None:
        """Get ready for requests of one batch size, and keep them."""

    def time(self, index: int) -> int:
        """Answer a request; nanoseconds from arrays on the host to arrays on the host."""

    def answer(self, index: int) -> Arrays:
        """The answer to a request, not timed, in arrays of its own."""

    def close(self) -> None: ...


class LocalContender:
    """A peer in this process."""

    def __init__(self, peer: Peer, subject: Subject) -> None:
        self.name = peer.name
        self._loaded: Loaded = peer.load(subject)
        self._requests: Sequence[Arrays] = ()
        self._call: Call

    def prepare(self, requests: Sequence[Arrays]) -> None:
        self._requests = requests
        self._call = self._loaded.prepare(requests[0])

    def time(self, index: int) -> int:
        call, request = self._call, self._requests[index]
        begun = time.perf_counter_ns()
        call(request)
        return time.perf_counter_ns() - begun

    def answer(self, index: int) -> Arrays:
        return {name: array.copy() for name, array in self._call(self._requests[index]).items()}

    def close(self) -> None:
        self._loaded.close()
