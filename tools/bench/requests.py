"""Requests to measure with: many different ones, with ids from all over the tables.

One request replayed again and again would find its rows in the cache, which no server's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from recreplay.runtime.artifact import Artifact

if TYPE_CHECKING:
    from recreplay.runtime.manifest import Manifest
    from recreplay.tools.target import Target

COUNT = 17  # at least 16; odd, so that each meets both orders of a pair
Array = np.ndarray[Any, Any]


def random_requests(
    target: Target, artifact: Artifact, rows: int, count: int, seed: int
) -> list[dict[str, Tensor]]:
    """`count` different requests of `rows` rows on the CPU, by input name.

    A reference model draws its own. For any other, and for users whom rows have in common, values
    are drawn from a request that the artifact stores, and ids uniformly below the bounds that
    capture found.
    """
    from recreplay.models import Ranker

    seeds = range(1000 * seed, 1000 * seed + count)
    if isinstance(target.model, Ranker) and not artifact.manifest.users:
        return [target.model.example_inputs(rows, s) for s in seeds]
    from recreplay.capture.sampling import sample_stored

    return sample_stored(artifact, rows, seeds)


def as_the_model_takes_them(
    manifest: Manifest, requests: Sequence[dict[str, Tensor]]
) -> Sequence[dict[str, Tensor]]:
    """The same requests for whoever knows of no user side: every row with its user's inputs, and
    the row mask, if the model has one."""
    from recreplay.capture.user_side import for_eager
    from recreplay.runtime.jagged import rows_of

    if not manifest.users and manifest.row_mask is None:
        return requests
    spec = next(s for s in manifest.inputs if s.kind != "values" and not s.user)
    return [for_eager(manifest.model_inputs, r, rows_of(spec, r[spec.name])) for r in requests]


def model_inputs(manifest: Manifest) -> tuple[str, ...]:
    """What the model itself takes, in the order of the artifact."""
    return tuple(spec.name for spec in manifest.model_inputs if spec.kind != "index")


def as_arrays(request: dict[str, Tensor]) -> dict[str, Array]:
    """The same request as a service sends it: numpy arrays."""
    return {name: tensor.numpy() for name, tensor in request.items()}
