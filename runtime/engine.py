"""The runtime that services embed: load an artifact, then answer requests of any size."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.runtime.artifact import CONSTANTS, SELFTEST, WEIGHTS, Artifact, open_artifact
from recreplay.runtime.artifact import check_environment as _check_environment
from recreplay.runtime.borrow import Borrow
from recreplay.runtime.errors import (
    BorrowError,
    EnvironmentMismatchError,
    InputError,
    ParityError,
    RecReplayError,
    ReplayError,
    RuntimeClosedError,
)
from recreplay.runtime.fill import CHECKS, Check, Fill
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.metrics import Metrics
from recreplay.runtime.mixed import Cutter, is_mixed, make_checker

if TYPE_CHECKING:
    from recreplay.runtime.lane import Lane, Prepared

Array = np.ndarray[Any, Any]


class Runtime:
    """A loaded artifact, ready to replay. Make one with `Runtime.load`; thread-safe.

    Requests of several threads take turns on one lane.
    """

    def __init__(
        self, artifact: Artifact, lane: Lane, close: Sequence[Any], check: Check = "error"
    ) -> None:
        self.manifest: Manifest = artifact.manifest
        self.path = artifact.path
        self._lane = lane
        self._close = list(close)
        self._lock = threading.Lock()
        self._metrics = Metrics()
        self._checker = make_checker(self.manifest, check)
        self._cutter = Cutter(self.manifest) if is_mixed(self.manifest) else None
        self._largest = self.manifest.buckets[-1].size
        self._worker: ThreadPoolExecutor | None = None
        self._closing = self._closed = False
        self._borrower: int | None = None  # the thread that holds a borrow

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | None = None, check: Check = "error"
    ) -> Runtime:
        """Check the artifact, record its graphs (nothing is compiled), and prove it on stored
        requests.

        `device`: where to run; the artifact's own if not given. `check`: what happens to ids
        outside their table: `"error"` refuses the request, `"clamp"` takes the nearest row and
        counts it, `"off"` trusts the caller (on a GPU a bad id then ends the process's CUDA
        context).
        """
        if check not in CHECKS:
            raise RecReplayError(f"unknown check {check!r}; expected one of {', '.join(CHECKS)}")
        artifact = open_artifact(path)
        manifest = artifact.manifest
        wanted = device or manifest.device
        if wanted.partition(":")[0] != manifest.device:
            raise EnvironmentMismatchError(
                f"{artifact.path} was captured for {manifest.device!r} and cannot run on "
                f"{wanted!r}; capture it again with device={wanted.partition(':')[0]!r}"
            )
        runtime = cls(artifact, *make_lane(artifact, wanted, check), check)
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
            arrays, n = self._checker.check(inputs)
            self._take()
            try:
                if self._cutter is not None:
                    results = self._replay_parts(self._cutter, arrays, n)
                elif n <= self._largest:
                    results = self._replay(arrays, n)
                else:
                    results = self._split(arrays, n)
                self._metrics.requests += 1
            finally:
                self._lock.release()
        except BorrowError:
            raise
        except BaseException:
            with self._lock:
                self._metrics.failed += 1
            raise
        return results

    def borrow(self, n: int) -> Borrow:
        """The staging memory for one request of n rows, to be written without a copy.

            with rt.borrow(n) as request:
                request.inputs["ids_0"][:] = ids
                scores = request.run()["output"]

        `inputs` are views `[n, ...]`. All other requests wait until the block ends. Raises
        `BorrowError` if n is not 1 to the largest bucket, if this thread holds a borrow, or if the
        model has jagged inputs or a user side.
        """
        if not 1 <= n <= self._largest:
            raise BorrowError(
                f"cannot borrow {n} rows; expected 1 to {self._largest}, the largest bucket (`run` "
                "splits larger requests)"
            )
        if self._cutter is not None:
            raise BorrowError(
                "the model has jagged inputs or a user side, whose rows are not the request's; use "
                "`run`"
            )
        self._take()
        self._borrower = get_ident()
        return Borrow(self._lane.prepare(n), self._run_borrowed, self._return)

    def submit(self, inputs: Mapping[str, Any]) -> Future[dict[str, Array]]:
        """`run` on the runtime's own thread; the inputs must not change until the future is
        done."""
        with self._lock:
            if self._closing:
                raise RuntimeClosedError("this Runtime was closed; load the artifact again")
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="recreplay")
            return self._worker.submit(self.run, inputs)

    def stats(self) -> dict[str, Any]:
        """Counters since load: requests, rows, failures, splits, padding, clamped ids, replays."""
        with self._lock:
            return self._metrics.snapshot()

    def close(self) -> None:
        """Answer what was submitted, then free everything. Closing twice is fine."""
        with self._lock:
            self._closing = True  # nothing more is submitted, what was is answered
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown(wait=True)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._lane.close()
            for resource in self._close:
                resource.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self) -> None:
        """The lane, for this thread; `_lock` is held then."""
        if self._borrower == get_ident():
            raise BorrowError(
                "this thread holds a borrow, which has the only lane; end its `with` block first"
            )
        self._lock.acquire()
        if self._closed:
            self._lock.release()
            raise RuntimeClosedError("this Runtime was closed; load the artifact again")

    def _run_borrowed(self, prepared: Prepared) -> dict[str, Array]:
        assert isinstance(prepared.fill, Fill)
        try:
            results = self._launch(prepared, prepared.fill.in_place())
        except BaseException:
            self._metrics.failed += 1
            raise
        self._metrics.requests += 1
        return results

    def _return(self) -> None:
        self._borrower = None
        self._lock.release()

    def _replay(self, arrays: Sequence[Array], n: int, first_row: int = 0) -> dict[str, Array]:
        prepared = self._lane.prepare(n)
        try:
            clamped = prepared.fill(arrays, first_row)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            clamped = prepared.fill(self._checker.convert(arrays)[0], first_row)
        return self._launch(prepared, clamped)

    def _launch(self, prepared: Prepared, clamped: int) -> dict[str, Array]:
        try:
            prepared.replay()
        except (IndexError, RuntimeError) as error:  # what torch's operators raise
            open_tables = ", ".join(self.manifest.unchecked) or "none"
            raise ReplayError(
                f"replaying bucket {prepared.bucket} failed: {error}; ids that no check covers are "
                f"the usual cause (tables: {open_tables}; all with check='off')"
            ) from error
        self._metrics.count(prepared.bucket, prepared.rows, clamped)
        return {name: view.copy() for name, view in prepared.outputs}

    def _split(self, arrays: Sequence[Array], n: int) -> dict[str, Array]:
        """A request above the largest bucket, in parts of that bucket."""
        step = self._largest
        arrays, _ = self._checker.convert(arrays)  # so that messages speak of the whole request
        parts = [
            self._replay([a[start : start + step] for a in arrays], min(step, n - start), start)
            for start in range(0, n, step)
        ]
        self._metrics.split_requests += 1
        return join(parts)

    def _replay_parts(self, cutter: Cutter, arrays: Sequence[Array], n: int) -> dict[str, Array]:
        """A request with a user side or jagged values, in the buckets that hold both its rows and
        its values."""
        parts = cutter.parts(arrays, n)
        results = []
        for part in parts:
            prepared = self._lane.prepare_in(part.bucket, part.stop - part.start)
            clamped = prepared.fill(cutter.take(arrays, part), part.start)
            results.append(self._launch(prepared, clamped))
            self._metrics.capacity_moves += part.moved
        self._metrics.split_requests += len(parts) > 1
        self._metrics.capacity_splits += len(parts) > cutter.rows_alone(n)
        return join(results)

    def _self_test(self) -> None:
        """Replay the stored requests and compare with what the eager model answered at capture."""
        from safetensors.numpy import load_file

        stored = load_file(self.path / SELFTEST)
        tolerance = {p.bucket: (p.rtol, p.atol) for p in self.manifest.parity}
        for size, (rtol, atol) in tolerance.items():
            inputs = {s.name: stored[f"{size}/in/{s.name}"] for s in self.manifest.inputs}
            for name, got in self.run(inputs).items():
                expected = stored[f"{size}/out/{name}"]
                if not np.allclose(got, expected, rtol=rtol, atol=atol, equal_nan=True):
                    worst = float(np.max(np.abs(got.astype(np.float64) - expected)))
                    raise ParityError(
                        f"{self.path}: self-test of bucket {size} failed: output {name!r} differs "
                        f"by {worst:.3g} from the stored answer (rtol {rtol}, atol {atol}); this "
                        "machine "
                        "does not compute what the model was captured with, so capture it again "
                        "here"
                    )
        self._metrics = Metrics()


def join(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """The outputs of a request from those of its parts."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def make_lane(artifact: Artifact, wanted: str, check: Check) -> tuple[Lane, list[Any]]:
    """Load everything an artifact needs on its device; returns the lane and what to close after
    it."""
    from recreplay.runtime.devices import open_device
    from recreplay.runtime.lane import Lane
    from recreplay.runtime.segments import load_package
    from recreplay.runtime.weights import load_tensors, with_views

    manifest, root = artifact.manifest, artifact.path
    device = open_device(wanted)
    _check_environment(artifact, device.fingerprint())
    target = device.torch_device
    weights = with_views(load_tensors(root / WEIGHTS, target), manifest.tables)
    constants = load_tensors(root / CONSTANTS, target)
    tensors = {
        **{f"weight:{k}": v for k, v in weights.items()},
        **{f"const:{k}": v for k, v in constants.items()},
    }
    packages = {}
    try:
        for key, package in manifest.packages.items():
            packages[key] = load_package(package.compiler, root / package.path, target)
        lane = Lane(manifest, device, packages, tensors, check)
    except BaseException:
        for loaded in packages.values():
            loaded.close()
        device.close()
        raise
    return lane, [*packages.values(), device]
