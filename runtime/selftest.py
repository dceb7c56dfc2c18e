"""The proof that a lane computes what was captured: stored requests and their answers.

The answers are the eager model's or, where precision was lowered, those of the first replay.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.runtime.artifact import SELFTEST, stored_request
from recreplay.runtime.closeness import all_close, column_scale, firm_part
from recreplay.runtime.errors import ParityError
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.metrics import Metrics
from recreplay.runtime.replay import Replayer

if TYPE_CHECKING:
    from recreplay.runtime.lane import Lane

Array = np.ndarray[Any, Any]
_DECIDE = 3  # replays, of five at most: the median of them


class SelfTest:
    """The stored requests of an artifact, one a bucket."""

    def __init__(self, path: Path, manifest: Manifest, replayer: Replayer) -> None:
        self._path, self._manifest, self._replayer = path, manifest, replayer
        # Kept, so that a lane can be proved when the artifact is gone.
        self._smallest: dict[str, Array] = {}

    def stored(self) -> dict[str, Array]:
        """All requests and answers, read from the artifact."""
        from safetensors.numpy import load_file

        return load_file(self._path / SELFTEST)

    def all_buckets(self, lane: Lane, stored: Mapping[str, Array]) -> None:
        """Raise `ParityError` where a bucket does not answer as it did when captured."""
        mine = f"{self._manifest.buckets[0].size}/"
        self._smallest = {name: array for name, array in stored.items() if name.startswith(mine)}
        for parity in self._manifest.parity:
            self._test(lane, parity.bucket, stored)

    def smallest_bucket(self, lane: Lane, compare: bool) -> None:
        """Whether a lane still replays and, with `compare`, answers right: with refreshed weights,
        the stored answer says nothing."""
        stored = self._smallest or self.stored()
        self._test(lane, self._manifest.buckets[0].size, stored, compare)

    def rows_within(self, lane: Lane, us: float, stored: Mapping[str, Array]) -> int:
        """The rows of the largest bucket that replays within `us` microseconds, filling and all,
        as all smaller ones do; 0 if there is none."""
        rows = 0
        for bucket in self._manifest.buckets:
            arrays, n = self._replayer.checker.check(stored_request(stored, bucket.size))
            within = beyond = 0
            while within < _DECIDE and beyond < _DECIDE:
                begun = time.perf_counter()
                self._replay(lane, arrays, n)
                is_fast = (time.perf_counter() - begun) * 1e6 <= us
                within, beyond = within + is_fast, beyond + (not is_fast)
            if beyond == _DECIDE:
                break
            rows = bucket.size
        return rows

    def _replay(self, lane: Lane, arrays: Sequence[Array], n: int) -> dict[str, Array]:
        counted, lane.metrics = lane.metrics, Metrics()  # a test is no request
        try:
            return self._replayer.replay_whole(lane, arrays, n)
        finally:
            lane.metrics = counted

    def _test(
        self, lane: Lane, size: int, stored: Mapping[str, Array], compare: bool = True
    ) -> None:
        parity = next(p for p in self._manifest.parity if p.bucket == size)
        arrays, n = self._replayer.checker.check(stored_request(stored, size))
        outputs = self._replay(lane, arrays, n)
        atols = {o.output: o.atol for o in parity.outputs}
        for name, got in outputs.items():
            expected, atol = stored[f"{size}/out/{name}"], atols[name]
            got = firm_part(stored, size, name, got)
            close = all_close(got, expected, parity.rtol, atol, column_scale(expected))
            if compare and not close:
                worst = float(np.max(np.abs(got.astype(np.float64) - expected)))
                raise ParityError(
                    f"{self._path}: self-test of bucket {size} failed: output {name!r} differs by "
                    f"{worst:.3g} from the stored answer (rtol {parity.rtol}, atol {atol:.3g}); "
                    "this machine does not compute what the model was captured with, so capture it "
                    "again here"
                )
