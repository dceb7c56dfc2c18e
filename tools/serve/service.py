"""What HTTP and gRPC serve: a repository, whether it is ready, and counters of each model."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recreplay.runtime import ModelRepository, Runtime
from recreplay.runtime.errors import (
    DeadlineExceeded,
    InputError,
    LanesLostError,
    ModelNotFoundError,
    Overloaded,
    RecReplayError,
    RepositoryError,
    RuntimeClosedError,
)
from recreplay.runtime.repository import Served

Array = np.ndarray[Any, Any]


@dataclass
class Counts:
    """Requests of one version of a model since the server began, times in nanoseconds."""

    success: int = 0
    success_ns: int = 0
    failed: int = 0
    failed_ns: int = 0
    last_ms: int = 0  # of the epoch, when the last request was answered
    pending: int = 0


def http_status(error: BaseException) -> int:
    """The status that Triton answers with for a failure of this kind."""
    match error:
        case ModelNotFoundError():
            return 404
        case InputError() | RepositoryError():
            return 400
        case Overloaded() | DeadlineExceeded() | RuntimeClosedError() | LanesLostError():
            return 503
    return 500


class Service:
    """Ready once every model of the repository was tried and none failed, until it stops."""

    def __init__(self, repository: ModelRepository) -> None:
        self.repository = repository
        self.ready = False
        self.stopping = False
        self._counts: dict[tuple[str, str], Counts] = {}
        self._live: dict[str, Served] = {}  # what `stats` reads; no disk is asked for it
        self._ended: dict[tuple[str, str], dict[str, Any]] = {}  # counters of closed runtimes
        self._lock = threading.Lock()

    def start(self) -> list[RepositoryError]:
        """Load every model; what failed, or has a name that none can have. Ready if any model
        serves, or there is none. A server that is to stop loads no further one."""
        failed: list[RepositoryError] = []
        names = self.repository.names()
        for name in names:
            if self.stopping:
                return failed
            try:
                self.load(name)
            except RepositoryError as error:
                failed.append(error)
        self.ready = not failed or len(failed) < len(names)
        return failed + [
            RepositoryError(
                f"{self.repository.root / name} is not served: expected the name of a model to be "
                "of a-z, A-Z, 0-9, '_', '.' and '-'; rename it"
            )
            for name in self.repository.misnamed()
        ]

    def load(self, name: str) -> None:
        """Load the newest version of a model in the live one's place."""
        try:
            self.repository.load(name)
        finally:
            self._follow(name)

    def unload(self, name: str) -> None:
        try:
            self.repository.unload(name)
        finally:
            self._follow(name)

    def live(self) -> dict[tuple[str, str], Runtime]:
        """What replays, by model, or stage of a funnel, and version."""
        with self._lock:
            return {
                key: runtime
                for name, served in self._live.items()
                for key, runtime in _counted(name, served).items()
            }

    def stats(self) -> dict[tuple[str, str], dict[str, Any]]:
        """`Runtime.stats` of each version, live or not, and of a funnel those of each stage, summed
        over the times it was loaded: a counter that starts again would show as a rate that never
        was."""
        with self._lock:
            found = dict(self._ended)
            for name, served in self._live.items():
                for key, runtime in _counted(name, served).items():
                    found[key] = _added(found.get(key, {}), runtime.stats())
        return found

    def is_ready(self) -> bool:
        return self.ready and not self.stopping

    def model_ready(self, name: str, version: str | None) -> bool:
        try:
            served = self.repository.get(name, version)
        except ModelNotFoundError:
            return False
        return not self.stopping and served.runtime.lanes_alive() > 0

    async def infer(
        self,
        name: str,
        version: str | None,
        inputs: Mapping[str, Array],
        deadline_us: int | None,
    ) -> tuple[str, dict[str, Array]]:
        """The version that answered, and its outputs."""
        begun = time.perf_counter_ns()
        answering = self.repository.get(name, version).version
        counts = self._of(name, answering)
        with self._lock:
            counts.pending += 1
        try:
            answering, outputs = await self.repository.arun(
                name, inputs, version, deadline_us=deadline_us
            )
        except BaseException:
            with self._lock:
                counts.pending -= 1
                counts.failed += 1
                counts.failed_ns += time.perf_counter_ns() - begun
            raise
        with self._lock:
            counts.pending -= 1
            counts = self._counts.setdefault((name, answering), Counts())
            counts.success += 1
            counts.success_ns += time.perf_counter_ns() - begun
            counts.last_ms = time.time_ns() // 1_000_000
        return answering, outputs

    def counts(self) -> dict[tuple[str, str], Counts]:
        with self._lock:
            return {key: Counts(**asdict(value)) for key, value in self._counts.items()}

    def statistics(self, name: str, version: str | None) -> dict[str, Any]:
        """One model's statistics in the form of Triton's statistics extension; those of a funnel
        are summed over its stages."""
        served = self.repository.get(name, version)
        known, stats = self.stats(), dict[Any, Any]()
        for key, runtime in _counted(name, served).items():
            # One that took the live one's place a moment ago is noted when that has been closed.
            stats = _added(stats, known.get(key) or runtime.stats())
        counts = self._of(name, served.version)
        queue = stats["queue"]
        replays = sum(stats["replays"].values())
        nothing = {"count": 0, "ns": 0}
        return {
            "name": name,
            "version": served.version,
            "last_inference": counts.last_ms,
            "inference_count": stats["rows"],
            "execution_count": replays,
            "inference_stats": {
                "success": {"count": counts.success, "ns": counts.success_ns},
                "fail": {"count": counts.failed, "ns": counts.failed_ns},
                "queue": {"count": queue["submitted"], "ns": queue["queue_ns"]},
                "compute_input": nothing,
                "compute_infer": {"count": replays, "ns": queue["replay_ns"]},
                "compute_output": nothing,
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [],
            "memory_usage": [],
        }

    def all_statistics(self) -> list[dict[str, Any]]:
        """Those of every model that serves; no disk is asked for them."""
        with self._lock:
            names = sorted(self._live)
        found = []
        for name in names:
            with suppress(ModelNotFoundError):  # it was unloaded meanwhile
                found.append(self.statistics(name, None))
        return found

    def _follow(self, name: str) -> None:
        """Take note of what is live now; what was, has been closed and keeps its counters here."""
        with self._lock:
            try:
                now = self.repository.get(name)
            except ModelNotFoundError:
                now = None
            before = self._live.pop(name, None)
            if now is not None:
                self._live[name] = now
            if before is not None and before is not now:
                for key, runtime in _counted(name, before).items():
                    self._ended[key] = _added(self._ended.get(key, {}), runtime.stats())

    def _of(self, name: str, version: str) -> Counts:
        with self._lock:
            return self._counts.setdefault((name, version), Counts())


def _counted(name: str, served: Served) -> dict[tuple[str, str], Runtime]:
    return {(of, served.version): runtime for of, runtime in served.stages(name).items()}


def _added(one: dict[Any, Any], other: dict[Any, Any]) -> dict[Any, Any]:
    """Sums of numbers under the same keys, at any depth."""
    found = dict(one)
    for key, value in other.items():
        if isinstance(value, dict):
            found[key] = _added(found.get(key, {}), value)
        elif isinstance(value, (int, float)):
            found[key] = found.get(key, 0) + value
    return found


def message(error: BaseException) -> str:
    """What a client is told: our own errors speak for themselves, others are named."""
    return str(error) if isinstance(error, RecReplayError) else f"{type(error).__name__}: {error}"
