"""Contenders that are captured models: the same one in another form, replayed in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence

from recreplay.runtime import Runtime
from recreplay.runtime.artifact import WEIGHTS
from recreplay.runtime.manifest import Manifest
from recreplay.tools.bench.captured import Captured
from recreplay.tools.bench.peers.base import Arrays

WARM_UP = 20  # rounds


class Variant:
    """A captured model by the name it has among the others."""

    def __init__(self, name: str, model: Captured, device: str) -> None:
        self.name = name
        self.manifest: Manifest = model.manifest
        self.weights = (model.path / WEIGHTS).stat().st_size
        self._runtime = Runtime.load(model.path, device=device)
        self._requests: Sequence[Arrays] = ()

    def prepare(self, requests: Sequence[Arrays]) -> None:
        self._requests = requests

    def time(self, index: int) -> int:
        run, request = self._runtime.run, self._requests[index]
        begun = time.perf_counter_ns()
        run(request)
        return time.perf_counter_ns() - begun

    def answer(self, index: int) -> Arrays:
        return self._runtime.run(self._requests[index])

    def close(self) -> None:
        self._runtime.close()
