"""Queries of drawn sizes for an artifact, cut from a pool of large random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recreplay.runtime.artifact import Artifact
from recreplay.runtime.errors import RecReplayError
from recreplay.runtime.jagged import Group, divide, division_of, groups, rows_of
from recreplay.runtime.manifest import Manifest
from recreplay.tools.load.sizes import Sizes, largest
from recreplay.tools.query_sizes import LARGEST
from recreplay.tools.view.samples import sample_requests

Array = np.ndarray[Any, Any]
_POOL_BYTES = 64 << 20  # of the pool: large enough that rows do not stay in the cache
_POOL = 32  # large requests at most: what DeepRecSys loops over (`num_batches`)


class _Whole(NamedTuple):
    """A large request, and where the rows of each of its divisions begin."""

    arrays: dict[str, Array]
    starts: dict[str, Array]
    users: int


def _check_whole(manifest: Manifest, sizes: Sizes) -> None:
    """Raise RecReplayError where queries would have to be cut that cannot be."""
    most = manifest.buckets[-1].size
    if manifest.row_mask is not None and (drawn := largest(sizes)) > most:
        raise RecReplayError(
            f"queries have up to {drawn} rows; the largest bucket holds {most}, and requests of a "
            "model that compares rows cannot be cut; ask for sizes within it, or capture with a "
            "larger bucket"
        )


class Queries:
    """Draws sizes, and requests of a size: candidates of one user, where there is a user side."""

    def __init__(self, path: Path, manifest: Manifest, sizes: Sizes, seed: int = 0) -> None:
        _check_whole(manifest, sizes)
        self._sizes = sizes
        self._draw = np.random.default_rng(seed)
        self._by_row = [spec.name for spec in manifest.inputs if spec.by_row]
        self._others = [spec for spec in manifest.inputs if not spec.by_row]
        self._groups = groups(manifest.inputs)
        artifact = Artifact(path, manifest)
        # A scheduler also asks for requests that fill the largest bucket.
        self._most = max(LARGEST, sizes.most, manifest.buckets[-1].size)
        first = sample_requests(artifact, self._most, 1, seed)
        nbytes = sum(array.nbytes for array in first[0].values())
        more = max(1, min(_POOL, _POOL_BYTES // nbytes)) - 1
        pool = [*first, *sample_requests(artifact, self._most, more, seed + 1)]
        self._pool = [self._whole(arrays) for arrays in pool]

    def next(self) -> dict[str, Any]:
        """A request of a size drawn from the distribution."""
        return self.of(self._sizes(self._draw))

    def mean_rows(self, count: int = 4096) -> int:
        """The mean of the size distribution, rounded."""
        draw = np.random.default_rng(0)
        return round(sum(self._sizes(draw) for _ in range(count)) / count)

    def of(self, rows: int) -> dict[str, Any]:
        """A request of so many rows, from 1 to what sizes and buckets have at most."""
        whole = self._pool[int(self._draw.integers(len(self._pool)))]
        start = int(self._draw.integers(self._most - rows + 1))
        user = int(self._draw.integers(whole.users)) if whole.users else 0
        return self._cut(whole, slice(start, start + rows), slice(user, user + 1))

    def _whole(self, arrays: dict[str, Array]) -> _Whole:
        def starts(group: Group) -> Array:
            name = group.division.name
            return divide(group, arrays[name], [arrays[spec.name] for spec in group.values])

        found = {group.division.name: starts(group) for group in self._groups}
        by_user = (s for s in self._others if s.user and s.kind != "values")
        return _Whole(arrays, found, next((rows_of(s, arrays[s.name]) for s in by_user), 0))

    def _cut(self, whole: _Whole, rows: slice, user: slice) -> dict[str, Any]:
        found = {name: whole.arrays[name][rows] for name in self._by_row}
        for spec in self._others:
            array = whole.arrays[spec.name]
            items = user if spec.user else rows
            if spec.kind == "values":
                starts = whole.starts[spec.along]
                found[spec.name] = array[starts[items.start] : starts[items.stop]]
            elif spec.kind == "index":
                found[spec.name] = np.zeros(rows.stop - rows.start, array.dtype)
            elif spec.kind == "rows":
                found[spec.name] = array[items]
            else:
                starts = whole.starts[spec.name][items.start : items.stop + 1]
                division = division_of(spec, starts - starts[0])
                found[spec.name] = division.astype(array.dtype, copy=False)
        return found
