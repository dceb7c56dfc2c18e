"""Our own side: the captured artifact, run as a service runs it."""

from __future__ import annotations

from collections.abc import Mapping

from recreplay.runtime import Runtime
from recreplay.tools.bench.peers.base import Array, Call, Subject


class Ours:
    name = "ours"
    about = "Runtime.run: checks of shapes, dtypes and ids, fill, replay, outputs copied out"
    records_graphs = False

    def absent(self, device: str) -> str | None:
        return None

    def load(self, subject: Subject) -> LoadedRuntime:
        return LoadedRuntime(subject)


class LoadedRuntime:
    def __init__(self, subject: Subject) -> None:
        self._runtime = Runtime.load(subject.artifact, device=subject.device)

    def prepare(self, example: Mapping[str, Array]) -> Call:
        return self._runtime.run

    def close(self) -> None:
        self._runtime.close()
