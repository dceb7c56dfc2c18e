"""Random requests for an artifact, drawn from what it stores: no model is needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from recreplay.runtime.artifact import SELFTEST, Artifact, stored_request

Array = np.ndarray[Any, Any]


def sample_requests(
    artifact: Artifact, rows: int, count: int, seed: int = 7
) -> list[dict[str, Array]]:
    """`count` different requests of `rows` rows, with ids from all over their tables."""
    from safetensors.torch import load_file

    from recreplay.capture.sampling import sample_request

    manifest = artifact.manifest
    stored = load_file(artifact.path / SELFTEST)
    example = stored_request(stored, manifest.buckets[-1].size)
    return [
        {
            name: value.numpy()
            for name, value in sample_request(
                manifest.inputs, manifest.bounds, example, rows, seed + i, users=manifest.users
            ).items()
        }
        for i in range(count)
    ]
