"""Random requests for an artifact, drawn from what it stores: no model is needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from recreplay.runtime.artifact import Artifact

Array = np.ndarray[Any, Any]


def sample_requests(
    artifact: Artifact, rows: int, count: int, seed: int = 7
) -> list[dict[str, Array]]:
    """`count` different requests of `rows` rows, with ids from all over their tables."""
    from recreplay.capture.sampling import sample_stored
    from recreplay.tools.bench.requests import as_arrays

    return [as_arrays(r) for r in sample_stored(artifact, rows, range(seed, seed + count))]
