"""One request on one lane: its bucket, or parts where none holds it or where parts are faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.runtime.batching import cut, join
from recreplay.runtime.errors import CapacityError, InputError, ReplayError
from recreplay.runtime.fill import Check
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.mixed import Cutter, Divided, MixedFill, is_mixed, make_checker
from recreplay.runtime.mixed_rows import take_rows
from recreplay.runtime.portions import Portions, measured_us
from recreplay.runtime.request import OwnTensor

if TYPE_CHECKING:
    from recreplay.runtime.devices.base import Launch
    from recreplay.runtime.lane import Lane, Prepared

Array = np.ndarray[Any, Any]


class Replayer:
    """What all lanes of a runtime do alike; it holds no state of a request."""

    def __init__(self, manifest: Manifest, check: Check, own_tensor: OwnTensor) -> None:
        self.checker = make_checker(manifest, check, own_tensor)
        self.largest = manifest.buckets[-1].size
        self._cutter = Cutter(manifest) if is_mixed(manifest) else None
        self.by_rows = self._cutter is None  # whether every input has a row for each of a request
        self._whole_only = manifest.row_mask is not None  # rows are compared with one another
        costs = measured_us(manifest)
        self._portions = Portions(costs) if costs else None
        self._unchecked = manifest.unchecked

    def replay(
        self, lane: Lane, arrays: Sequence[Array], n: int, first_row: int = 0
    ) -> dict[str, Array]:
        """The outputs `[n, ...]` of checked arrays. `first_row`: the row of the request that row 0
        of them is, for messages."""
        if self._cutter is not None:
            return self._parts(self._cutter, lane, arrays, n, first_row)
        step = self.largest if self._portions is None else self._portions(n)
        if n <= step:
            return self._rows(lane, arrays, n, first_row)
        return self._split(lane, arrays, n, step, first_row)

    def replay_whole(self, lane: Lane, arrays: Sequence[Array], n: int) -> dict[str, Array]:
        """The same in the bucket of `n` rows, whatever is faster."""
        if self._cutter is not None:
            return self._parts(self._cutter, lane, arrays, n)
        return self._rows(lane, arrays, n)

    def fits(self, lane: Lane, values: Sequence[Any], rows: int) -> bool:
        """Whether so many rows, which the request has not more of, have room for its other values
        as well."""
        return self._cutter is None or 0 < lane.needed(tuple(values)) <= rows

    def _rows(
        self, lane: Lane, arrays: Sequence[Array], n: int, first_row: int = 0
    ) -> dict[str, Array]:
        prepared = lane.prepare(n)
        try:
            clamped = prepared.fill(arrays, first_row)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            arrays, _ = self.checker.convert(arrays)
            if not all(isinstance(array, np.ndarray) for array in arrays):
                return self._fed(lane, prepared, arrays, first_row)
            clamped = prepared.fill(arrays, first_row)
        return self.launch(lane, prepared, prepared.replay, clamped)

    def _fed(
        self, lane: Lane, prepared: Prepared, values: Sequence[Any], first_row: int
    ) -> dict[str, Array]:
        """A request of which some inputs are on the device."""
        try:
            feeder = lane.feeder(prepared.bucket)
            fetched = None if feeder(values, prepared.rows) else feeder.fetch(values)
        except RuntimeError as error:
            raise ReplayError(
                f"filling bucket {prepared.bucket} with tensors of the device failed: {error}"
            ) from error
        if fetched is None:
            return self.launch(lane, prepared, prepared.replay_fed, 0)
        clamped = prepared.fill(fetched, first_row)
        return self.launch(lane, prepared, prepared.replay, clamped)

    def launch(
        self, lane: Lane, prepared: Prepared, replay: Launch, clamped: int
    ) -> dict[str, Array]:
        """The outputs of a request that was filled."""
        try:
            replay()
        except (IndexError, RuntimeError) as error:  # what torch's operators raise
            open_tables = ", ".join(self._unchecked) or "none"
            raise ReplayError(
                f"replaying bucket {prepared.bucket} failed: {error}; ids that no check covers are "
                f"the usual cause (tables: {open_tables}; all with check='off')"
            ) from error
        # Counted here: a call of its own takes as long again once a replay has emptied the caches.
        replays, key = lane.metrics.replays, prepared.counted_as
        replays[key] = replays.get(key, 0) + 1
        if clamped:
            lane.metrics.clamped_ids += clamped
        results = {}
        # No comprehension: in this Python it is a function of its own, made and called each time,
        # which costs 2 to 5 us after a replay has driven it out of the caches.
        for name, view in prepared.outputs:
            results[name] = view.copy()
        return results

    def _split(
        self, lane: Lane, arrays: Sequence[Array], n: int, step: int, first_row: int
    ) -> dict[str, Array]:
        """A request in parts of `step` rows, which is a bucket."""
        if self._whole_only:
            raise self._too_large(n)
        arrays, _ = self.checker.convert(arrays)  # so that messages speak of the whole request
        parts = [
            self._rows(lane, part, len(part[0]), first_row + at * step)
            for at, part in enumerate(cut(arrays, n, step))
        ]
        if n > self.largest:
            lane.metrics.split_requests += 1
        else:
            lane.metrics.portioned_requests += 1
        return join(parts)

    def _parts(
        self, cutter: Cutter, lane: Lane, arrays: Sequence[Array], n: int, first_row: int = 0
    ) -> dict[str, Array]:
        """A request with a user side or jagged values, in the buckets that hold both its rows and
        its values."""
        if not isinstance(arrays, Divided):
            whole = self._whole(cutter, lane, tuple(arrays), n)
            if whole is not None:
                return whole
            arrays, n = self.checker.convert(arrays)
            assert isinstance(arrays, Divided)
        parts = cutter.parts(arrays, n, first_row)
        if len(parts) > 1 and self._whole_only:
            raise self._too_large(n)
        results = []
        for part in parts:
            prepared = lane.prepare_in(part.bucket, part.stop - part.start)
            taken = take_rows(cutter.order, arrays, part.start, part.stop)
            clamped = prepared.fill(taken, first_row + part.start)
            results.append(self.launch(lane, prepared, prepared.replay, clamped))
            lane.metrics.capacity_moves += part.moved
        lane.metrics.split_requests += len(parts) > 1
        lane.metrics.capacity_splits += len(parts) > cutter.rows_alone(n)
        return join(results)

    def _too_large(self, n: int) -> CapacityError:
        most, room = f"{self.largest} rows", "larger bucket"
        if n <= self.largest:
            most, room = f"{most}, and no room for its values", "larger bucket or capacity"
        return CapacityError(
            f"the request of {n} rows fits in no bucket; the largest has {most}, and it cannot be "
            "cut, since the model compares the rows of a request (it was captured "
            f"with a row mask); send fewer, or capture with a {room}"
        )

    def _whole(
        self, cutter: Cutter, lane: Lane, values: tuple[Any, ...], n: int
    ) -> dict[str, Array] | None:
        """The same of values as they came, if they are right and a bucket holds all of them."""
        needed = lane.needed(values)
        part = cutter.whole(n, needed) if needed else None
        if part is None:
            return None
        prepared = lane.prepare_in(part.bucket, n)
        assert isinstance(prepared.fill, MixedFill)
        if not prepared.fill.as_it_came(values):
            return None
        results = self.launch(lane, prepared, prepared.replay, 0)
        lane.metrics.capacity_moves += part.moved
        return results
