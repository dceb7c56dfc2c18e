"""The runtime that services embed: load an artifact, then answer requests of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.runtime.artifact import Artifact, device_kind, open_artifact, read_seal
from recreplay.runtime.borrow import Borrow, Lending
from recreplay.runtime.dispatch import Dispatcher, check_serving
from recreplay.runtime.errors import (
    EnvironmentMismatchError,
    LanesLostError,
    RecReplayError,
    ReplayError,
)
from recreplay.runtime.fill import CHECKS, Check
from recreplay.runtime.inline import Inline
from recreplay.runtime.lanes import LanePool, Lease
from recreplay.runtime.loading import LaneLoader
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.refresh import Refresher
from recreplay.runtime.replay import Replayer
from recreplay.runtime.room import Rooms
from recreplay.runtime.selftest import SelfTest
from recreplay.runtime.serving import Serving

if TYPE_CHECKING:
    from recreplay.runtime.lane import Lane

Array = np.ndarray[Any, Any]


class Runtime:
    """A loaded artifact, ready to replay. Make one with `Runtime.load`; thread-safe.

    `run` replays on the caller's own thread, on a lane that is free; `submit` and `arun` queue, but
    for small requests of coroutines.
    """

    def __init__(
        self,
        artifact: Artifact,
        lane: Lane,
        loader: LaneLoader | None = None,
        serving: Serving | None = None,
        check: Check = "error",
    ) -> None:
        """`lane` is the first one; more are made by `loader`, which makes failed ones anew too."""
        self.manifest: Manifest = artifact.manifest
        self.path = artifact.path
        self.serving = serving or Serving()
        self.check: Check = check
        self._replayer = Replayer(self.manifest, check, lane.own_tensor)
        self._test = SelfTest(self.path, self.manifest, self._replayer)
        self._loader = loader
        self._lock = Lock()
        self._failed = 0
        self._lanes = LanePool(self._more_lanes(lane), self._new_lane, self._prove)
        self._lending = Lending(
            self._lanes, self._replayer, Rooms(self.manifest), self._count_failure
        )
        self._inline = Inline(self._lanes, self._lending, self._replayer)
        self._dispatcher = Dispatcher(
            self.manifest,
            self.serving,
            self._replayer.checker.check,
            self._replayer.checker.convert,
            self._answer,
            self._count_failure,
            self._inline,
            self._lanes,
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
        stored requests. One that is replaced meanwhile is loaded again.

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
        options = serving or Serving(lanes=1 if lanes is None else lanes)
        while True:
            seal = read_seal(path)
            try:
                runtime = cls._load(path, device, check, options)
            except Exception:
                if read_seal(path) == seal:
                    raise
            else:
                if read_seal(path) in (seal, None):  # None: it was taken away, and read whole
                    return runtime
                runtime.close()
            # Another artifact took its place, of which some files may have been read.

    @classmethod
    def _load(cls, path: str | Path, device: str | None, check: Check, options: Serving) -> Runtime:
        artifact = open_artifact(path)
        manifest = artifact.manifest
        wanted = device or manifest.device
        kind = device_kind(wanted)
        if kind != manifest.device:
            raise EnvironmentMismatchError(
                f"{artifact.path} was captured for {manifest.device!r} and cannot run on "
                f"{wanted!r}; capture it again with device={kind!r}"
            )
        check_serving(manifest, options)
        loader = LaneLoader(artifact, wanted, check, options.wait)
        runtime = cls(artifact, loader.lane(), loader, options, check)
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
        does. Inputs of the user side have a row a user; jagged values come with their offsets or
        lengths, and need a bucket with room for them too. Returns new arrays `[n, ...]` by output
        name. Raises a subclass of `InputError` that says what is wrong with the request; the
        runtime goes on.
        """
        try:
            arrays, n = self._replayer.checker.check(inputs)
            return self._answer(arrays, n)
        except BaseException:
            self._count_failure()
            raise

    def borrow(self, n: int, values: Mapping[str, int] | None = None, users: int = 1) -> Borrow:
        """The staging memory for one request of n rows, to be written without a copy.

            with rt.borrow(n) as request:
                request.inputs["ids_0"][:] = ids
                scores = request.run()["output"]

        `inputs` are views `[n, ...]`; of the user side, of `users` rows; of jagged inputs, of as
        many values as `values` says, which has a number for each of them. (Ids that are staged as
        int32 are copied once, to be checked before they are narrowed; capture with int32 examples
        to write them as they are staged.) The block has a lane for itself: with one lane, all other
        requests wait until it ends. Raises `BorrowError` if no bucket holds so much, or if this
        thread holds a borrow already, since a thread that takes the last lane twice waits for
        itself.
        """
        return Borrow(self._lending, n, values, users)

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
        """`submit` for asyncio. A request that is cancelled while it waits is not replayed.

        Where a lane is free, a request whose replay takes no longer than `Serving.inline_us` is
        answered here, without being handed to another thread.
        """
        return await self._dispatcher.arun(inputs, deadline_us)

    def update_rows(self, table: str, ids: Any, values: Any) -> None:
        """Write rows of an embedding table in place, between replays.

        `ids` `[k]` without repeats, `values` `[k, dim]` of the table's dtype or one that widens to
        it. `table` is the weight's name in the model (`manifest.tables` and `weights` list
        them). Replays that run are waited for, and none sees half of the rows; the chunks of a
        request (`Serving.chunk_rows`) and the stages of a funnel are replays each, and may lie on
        both sides of a write. Raises RefreshError before anything is written.
        """
        self._lending.refuse_borrowers()
        self._refresher.update_rows(table, ids, values)

    def update_weights(self, weights: Mapping[str, Any]) -> None:
        """Write whole weights in place, between replays: all of them or, if one does not fit,
        none.

        The state of a newly trained model may be given as it is (`model.state_dict()`): of a weight
        that has several names one or all, with equal values, and what the captured function does
        not read (`num_batches_tracked` of a normalisation) is left out.
        """
        self._lending.refuse_borrowers()
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
        """Answer what was submitted, then free everything. Closing twice is fine.

        Called by a request's own callback, it lets those that wait end by RuntimeClosedError. A
        borrow of this thread ends.
        """
        self._lending.end_mine()
        self._dispatcher.close()
        self._lanes.close()
        self._refresher.close()
        if self._loader is not None:
            self._loader.close()

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

    def _answer(
        self,
        arrays: Sequence[Array],
        n: int,
        requests: int = 1,
        first_row: int = 0,
        taken: Lease | None = None,
        on_loop: bool = False,
    ) -> dict[str, Array]:
        """The outputs of checked arrays, on a lane that was taken or the next that is free.
        `on_loop`: this is the thread of an event loop, which may not stand still for long."""
        if taken is None and self._lending.borrowers:
            self._lending.refuse_borrowers()
        lanes = self._lanes
        failed = False
        lease = lanes.take() if taken is None else taken
        try:
            results = self._replayer.replay(lease.lane, arrays, n, first_row)
            lease.lane.metrics.requests += requests
            return results
        except ReplayError:
            failed = True
            if on_loop:
                Thread(target=lanes.mend, args=(lease,), name="recreplay-mend").start()
            else:
                lanes.mend(lease)
            raise
        finally:
            if not failed:
                lanes.free.append(lease)  # by C, before an interrupt can come
                lanes.wake()

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
        """Prove every lane, on stored requests of every bucket."""
        leases = [self._lanes.take() for _ in range(self._lanes.alive)]
        try:
            stored = self._test.stored()
            for lease in leases:
                self._test.all_buckets(lease.lane, stored)
            if self.serving.inline_us:
                us = self.serving.inline_us
                self._inline.rows = self._test.rows_within(leases[0].lane, us, stored)
        finally:
            for lease in leases:
                self._lanes.put(lease)

    def _prove(self, lane: Lane) -> None:
        self._test.smallest_bucket(lane, compare=self._refresher.count == 0)
