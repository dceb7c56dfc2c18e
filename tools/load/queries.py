"""Queries of drawn sizes for an artifact, cut from a pool of large random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recreplay.runtime.artifact import Artifact
from recreplay.runtime.errors import RecReplayError
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.mixed import is_mixed
from recreplay.tools.load.sizes import Sizes
from recreplay.tools.query_sizes import LARGEST
from recreplay.tools.view.samples import sample_requests

_POOL_BYTES = 64 << 20  # of the pool: large enough that rows do not stay in the cache
_POOL = 32  # large requests at most: what DeepRecSys loops over (`num_batches`)


class Queries:
    """Draws sizes, and requests of a size."""

    def __init__(self, path: Path, manifest: Manifest, sizes: Sizes, seed: int = 0) -> None:
        if is_mixed(manifest):
            raise RecReplayError(
                "load is made of requests that are cut by rows; the model has jagged inputs or a "
                "user side"
            )
        self._sizes = sizes
        self._draw = np.random.default_rng(seed)
        artifact = Artifact(path, manifest)
        # A scheduler also asks for requests that fill the largest bucket.
        self._most = max(LARGEST, sizes.most, manifest.buckets[-1].size)
        first = sample_requests(artifact, self._most, 1, seed)
        nbytes = sum(array.nbytes for array in first[0].values())
        more = max(1, min(_POOL, _POOL_BYTES // nbytes)) - 1
        self._pool = [*first, *sample_requests(artifact, self._most, more, seed + 1)]

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
        return {name: array[start : start + rows] for name, array in whole.items()}
