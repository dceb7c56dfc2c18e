"""The runtime that services embed: load an artifact, then answer requests of any size."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.runtime.artifact import SELFTEST, Artifact, open_artifact
from recreplay.runtime.batching import cut, join
from recreplay.runtime.dispatch import Dispatcher
from recreplay.runtime.errors import (
    EnvironmentMismatchError,
    InputError,
    LanesLostError,
    ParityError,
    RecReplayError,
    ReplayError,
)
from recreplay.runtime.fill import CHECKS, Check, blocks
from recreplay.runtime.lanes import LanePool
from recreplay.runtime.loading import LaneLoader
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.metrics import Metrics
from recreplay.runtime.refresh import Refresher
from recreplay.runtime.request import RequestChecker
from recreplay.runtime.serving import Serving

if TYPE_CHECKING:
    from recreplay.runtime.lane import Lane

Array = np.ndarray[Any, Any]


class Runtime:
    """A loaded artifact, ready to replay. Make one with `Runtime.load`; thread-safe.

    `run` replays on the caller's own thread, on a lane that is free; `submit` and `arun` queue.
    """

    def __init__(
        self,
        artifact: Artifact,
        lane: Lane,
        loader: LaneLoader | None = None,
        serving: Serving | None = None,
    ) -> None:
        """`lane` is the first one; more are made by `loader`, which makes failed ones anew too."""
        self.manifest: Manifest = artifact.manifest
        self.path = artifact.path
        self.serving = serving or Serving()
        specs = {spec.name: spec for spec in self.manifest.inputs}
        order = blocks(self.manifest.buckets[0])  # the same for every bucket
        self._checker = RequestChecker(
            [specs[slot.name] for block in order for slot in block],
            [len(block) > 1 for block in order for _ in block],
        )
        self._largest = self.manifest.buckets[-1].size
        self._loader = loader
        self._lock = threading.Lock()
        self._failed = 0
        self._lanes = LanePool(self._more_lanes(lane), self._new_lane, self._prove)
        self._dispatcher = Dispatcher(
            self.manifest,
            self.serving,
            self._checker.check,
            self._checker.convert,
            self._answer,
            self._count_failure,
        )
        self._refresher = Refresher(self.manifest, loader, self._lanes)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        check: Check = "error",
        lanes: int | None = None,
        serving: Serving | None = None,
    ) -> Runtime:
        """Check the artifact, record its graphs (nothing is compiled), and prove every lane on
        stored requests.

        `device`: where to run; the artifact's own if not given. `check`: what happens to ids
        outside their table: `"error"` refuses the request, `"clamp"` takes the nearest row and
        counts it, `"off"` trusts the caller (on a GPU a bad id then ends the process's CUDA
        context). `lanes`: how many requests replay at the same time; `serving` says that and how
        requests are queued, batched and cut.
        """
        if check not in CHECKS:
            raise RecReplayError(f"unknown check {check!r}; expected one of {', '.join(CHECKS)}")
        if lanes is not None and serving is not None:
            raise RecReplayError("give lanes or serving, not both: serving has lanes as well")
        artifact = open_artifact(path)
        manifest = artifact.manifest
        wanted = device or manifest.device
        if wanted.partition(":")[0] != manifest.device:
            raise EnvironmentMismatchError(
                f"{artifact.path} was captured for {manifest.device!r} and cannot run on "
                f"{wanted!r}; capture it again with device={wanted.partition(':')[0]!r}"
            )
        options = serving or Serving(lanes=1 if lanes is None else lanes)
        loader = LaneLoader(artifact, wanted, check)
        runtime = cls(artifact, loader.lane(), loader, options)
        try:
            runtime._self_test()
        except BaseException:
            runtime.close()
            raise
        return runtime

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Scores of one request.

        `inputs`: an array `[n, ...]` for each input, n >= 1, as numpy or torch arrays or anything
        with `__array__` or DLPack. Runs in the smallest bucket that holds n rows, split if none
        does. Returns new arrays `[n, ...]` by output name. Raises a subclass of `InputError` that
        says what is wrong with the request; the runtime goes on.
        """
        try:
            arrays, n = self._checker.check(inputs)
            return self._answer(arrays, n, 1)
        except BaseException:
            self._count_failure()
            raise

    def submit(
        self, inputs: Mapping[str, Any], *, deadline_us: int | None = None
    ) -> Future[dict[str, Array]]:
        """`run` on a lane's own thread; the inputs must not change until the future is done.

        `deadline_us`: how long the request may wait for a lane, in place of the one that the
        runtime was loaded with. Raises Overloaded where the queue is full; the future raises
        DeadlineExceeded, and whatever `run` would raise.
        """
        return self._dispatcher.submit(inputs, deadline_us)

    async def arun(
        self, inputs: Mapping[str, Any], *, deadline_us: int | None = None
    ) -> dict[str, Array]:
        """`submit` for asyncio. A request that is cancelled while it waits is not replayed."""
        return await asyncio.wrap_future(self.submit(inputs, deadline_us=deadline_us))

    def update_rows(self, table: str, ids: Any, values: Any) -> None:
        """Write rows of an embedding table in place, between replays.

        `ids` `[k]` without repeats, `values` `[k, dim]` of the table's dtype or one that widens to
        it. `table` is the weight's name in the model (`manifest.tables` and `weights` list
        them). Replays that run are waited for, and none sees half of the rows. Raises RefreshError
        before anything is written.
        """
        self._refresher.update_rows(table, ids, values)

    def update_weights(self, weights: Mapping[str, Any]) -> None:
        """Write whole weights in place, between replays: all of them or, if one does not fit,
        none."""
        self._refresher.update_weights(weights)

    def weights(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of every weight that `update_weights` takes, by name."""
        return self._refresher.describe()

    def lanes_alive(self) -> int:
        """Lanes that serve; fewer than were asked for where some failed for good."""
        return self._lanes.alive

    def stats(self) -> dict[str, Any]:
        """Counters since load: requests, rows, failures, splits, padding, clamped ids, replays; of
        the queue; of lanes."""
        with self._lock:
            failed = self._failed
        return {
            **self._lanes.metrics().snapshot(),
            "failed": failed,
            "queue": self._dispatcher.stats(),
            "lanes": {
                "alive": self._lanes.alive,
                "rebuilt": self._lanes.rebuilt,
                "retired": self._lanes.retired,
            },
            "refreshes": self._refresher.count,
        }

    def close(self) -> None:
        """Answer what was submitted, then free everything. Closing twice is fine."""
        self._dispatcher.close()
        self._lanes.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _count_failure(self) -> None:
        with self._lock:
            self._failed += 1

    def _answer(self, arrays: Sequence[Array], n: int, requests: int) -> dict[str, Array]:
        """The outputs of checked arrays, on the next lane that is free."""
        lane = self._lanes.take()
        try:
            if n <= self._largest:
                results = self._replay(lane, arrays, n)
            else:
                results = self._split(lane, arrays, n)
            lane.metrics.requests += requests
        except ReplayError:
            self._lanes.mend(lane)
            raise
        except BaseException:
            self._lanes.put(lane)
            raise
        self._lanes.put(lane)
        return results

    def _replay(
        self, lane: Lane, arrays: Sequence[Array], n: int, first_row: int = 0
    ) -> dict[str, Array]:
        prepared = lane.prepare(n)
        try:
            clamped = prepared.fill(arrays, first_row)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            clamped = prepared.fill(self._checker.convert(arrays)[0], first_row)
        try:
            prepared.replay()
        except (IndexError, RuntimeError) as error:  # what torch's operators raise
            open_tables = ", ".join(self.manifest.unchecked) or "none"
            raise ReplayError(
                f"replaying bucket {prepared.bucket} failed: {error}; ids that no check covers are "
                f"the usual cause (tables: {open_tables}; all with check='off')"
            ) from error
        lane.metrics.count(prepared.bucket, n, clamped)
        return {name: view.copy() for name, view in prepared.outputs}

    def _split(self, lane: Lane, arrays: Sequence[Array], n: int) -> dict[str, Array]:
        """A request above the largest bucket, in parts of that bucket."""
        arrays, _ = self._checker.convert(arrays)  # so that messages speak of the whole request
        step = self._largest
        parts = [
            self._replay(lane, part, len(part[0]), at * step)
            for at, part in enumerate(cut(arrays, n, step))
        ]
        lane.metrics.split_requests += 1
        return join(parts)

    def _new_lane(self) -> Lane:
        if self._loader is None:
            raise LanesLostError(
                "this Runtime was made of a lane, and has no means to make another"
            )
        return self._loader.lane()

    def _more_lanes(self, first: Lane) -> list[Lane]:
        lanes = [first]
        try:
            for _ in range(self.serving.lanes - 1):
                lanes.append(self._new_lane())
        except BaseException:
            for lane in lanes:
                lane.close()
            raise
        return lanes

    def _self_test(self) -> None:
        """Replay the stored requests on every lane and compare with what the eager model answered
        at capture."""
        stored = self._stored()
        lanes = [self._lanes.take() for _ in range(self._lanes.alive)]
        try:
            for lane in lanes:
                for parity in self.manifest.parity:
                    self._test(lane, parity.bucket, stored)
        finally:
            for lane in lanes:
                self._lanes.put(lane)

    def _prove(self, lane: Lane) -> None:
        """Replay one stored request. With refreshed weights, its stored answer says nothing."""
        self._test(lane, self.manifest.buckets[0].size, self._stored(), self._refresher.count == 0)

    def _stored(self) -> dict[str, Array]:
        from safetensors.numpy import load_file

        return load_file(self.path / SELFTEST)

    def _test(
        self, lane: Lane, size: int, stored: Mapping[str, Array], compare: bool = True
    ) -> None:
        parity = next(p for p in self.manifest.parity if p.bucket == size)
        inputs = {s.name: stored[f"{size}/in/{s.name}"] for s in self.manifest.inputs}
        arrays, n = self._checker.check(inputs)
        counted, lane.metrics = lane.metrics, Metrics()  # a test is no request
        try:
            outputs = self._replay(lane, arrays, n)
        finally:
            lane.metrics = counted
        for name, got in outputs.items():
            expected = stored[f"{size}/out/{name}"]
            close = np.allclose(got, expected, parity.rtol, parity.atol, equal_nan=True)
            if compare and not close:
                worst = float(np.max(np.abs(got.astype(np.float64) - expected)))
                raise ParityError(
                    f"{self.path}: self-test of bucket {size} failed: output {name!r} differs by "
                    f"{worst:.3g} from the stored answer (rtol {parity.rtol}, atol {parity.atol}); "
                    "this machine does not compute what the model was captured with, so capture it "
                    "again here"
                )
