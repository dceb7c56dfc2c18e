"""Distributions of query sizes (rows of a request) that others have published, and traces of them.

DeepRecSys draws sizes from normal(256, 32), normal(165, 16) or lognormal(5.1, 0.2) (arXiv
2001.02772, `loadGenerator.py`); Kairos replays a heavy tail on top of the latter (HPDC 2023,
`helper.py`). All are cut to whole rows
between 1 and 1024. Sizes that were given, not drawn, are taken as they are, up to `MOST`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

LARGEST = 1024  # DeepRecSys' `max_mini_batch_size`
MOST = 1 << 14  # rows of a request in a trace; bucket lists for more would take minutes to find
Array = np.ndarray[Any, Any]
Draw = Callable[[np.random.Generator, int], Array]


def normal(mean: float, deviation: float) -> Draw:
    return lambda rng, count: rng.normal(mean, deviation, count)


def lognormal(mu: float, sigma: float) -> Draw:
    """The logarithm of a size is normal: median exp(mu)."""
    return lambda rng, count: rng.lognormal(mu, sigma, count)


def kairos(rng: np.random.Generator, count: int) -> Array:
    """Lognormal(5.1, 0.2) held to 100 … 200, with 8 % below 100, 22 % in 200 … 600 and 5 % in
    600 … 1000: mean about 239, median 177, 99th percentile 921."""
    base = rng.lognormal(5.1, 0.2, count).astype(np.int64)
    usual = np.where((base < 100) | (base > 200), rng.integers(190, 200, count), base)
    kind = rng.integers(1, 100, count)  # 1 to 99
    return np.select(
        [kind <= 8, kind <= 30, kind <= 35],
        [
            rng.integers(1, 100, count),
            rng.integers(200, 600, count),
            rng.integers(600, 1000, count),
        ],
        usual,
    )


DISTRIBUTIONS: dict[str, Draw] = {
    "normal_256": normal(256, 32),
    "normal_165": normal(165, 16),
    "lognormal": lognormal(5.1, 0.2),
    "kairos": kairos,
}


def draw_sizes(name: str, count: int, seed: int = 0) -> Array:
    """`count` query sizes, int64 in [1, 1024], from one of `DISTRIBUTIONS`; one seed, one trace."""
    return whole(DISTRIBUTIONS[name](np.random.default_rng(seed), count))


def whole(drawn: Array) -> Array:
    """What was drawn as sizes: int64 in [1, 1024]. Cut first: no int64 holds what may be drawn."""
    return np.clip(drawn, 1, LARGEST).astype(np.int64)


def histogram(sizes: Array) -> dict[int, int]:
    """How often each size occurs."""
    found, counts = np.unique(sizes, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
