"""Whether a request is faster in several replays of a smaller bucket than in one of its own.

What a model keeps between its operators grows with the bucket, until it leaves the cache or is more
than the allocator keeps: attention over 250 behaviours takes 92 µs a row in a bucket of 256 and 36
in one of 64. Only measured times tell, so only artifacts that were tuned are run so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from recreplay.runtime.manifest import Manifest

_PORTION_US = 15.0  # of the host, for each further replay: filling again, copying out, joining
_GAIN = 0.9  # of the time of one replay, at most; what gains less may be noise


def measured_us(manifest: Manifest) -> dict[int, float]:
    """What a replay of each bucket takes, by the tuner; empty unless it measured all of them, and
    where nothing may be cut."""
    if manifest.row_mask is not None:
        return {}
    chosen = {c.bucket: c.us for c in manifest.candidates if c.chosen and c.us is not None}
    return chosen if len(chosen) == len(manifest.buckets) else {}


def best_portion(costs: Mapping[int, float], rows: int) -> int:
    """Rows of each replay but the last: a bucket, the one that holds all `rows` where that is best.

    `costs` are microseconds by bucket. Above the largest bucket, that one is what is gained on.
    """
    sizes = sorted(costs)

    def cost(step: int) -> float:
        full, rest = divmod(rows, step)
        last = costs[sizes[bisect_left(sizes, rest)]] if rest else 0.0
        return full * costs[step] + last + (full + bool(rest) - 1) * _PORTION_US

    usual = sizes[min(bisect_left(sizes, rows), len(sizes) - 1)]
    best = min((s for s in sizes if s < min(rows, usual)), key=cost, default=usual)
    return best if cost(best) <= _GAIN * cost(usual) else usual


class Portions:
    """`best_portion` by `costs`, looked up once for each number of rows."""

    def __init__(self, costs: Mapping[int, float]) -> None:
        self._costs = costs
        self._known: dict[int, int] = {}

    def __call__(self, rows: int) -> int:
        step = self._known.get(rows)
        if step is None:
            if len(self._known) >= 4096:  # rows are the caller's, and without bound
                self._known.clear()
            step = self._known[rows] = best_portion(self._costs, rows)
        return step
