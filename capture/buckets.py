"""The bucket list that costs least for observed request sizes, by dynamic programming.

A request of n rows runs in the smallest bucket that holds it and pays for the whole bucket; above
the largest bucket L it runs in parts of L, and what is left over in the bucket that holds it. For
one L the parts above it are known, so every size becomes a number of whole parts and a remainder,
and the rest is a partition of the remainders into k groups whose largest member is the bucket:
`f_j(b) = min over a < b of f_(j-1)(a) + t(b) (C(b) - C(a))`, where C counts requests up to a size.
Written as lines `f_(j-1)(a) - C(a) t(b)` in t(b), whose slopes fall with a while the queries rise,
each layer is the lower envelope of lines walked once (the convex hull trick), so one L costs
O(k m) for m sizes. Every L from 1 to the largest size is tried, in the order of a bound (its parts
without any padding, and the best partition of the sizes up to L alone), until the bound says that
no other can win; the answer is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from recreplay.runtime.errors import CaptureError

Array = np.ndarray[Any, Any]
Cost = Callable[[int], float]  # microseconds of a replay of one bucket size
_SAME = 1 + 1e-12  # sums of the same costs in another order differ by no more


@dataclass(frozen=True, slots=True)
class Expected:
    """What a bucket list costs per request, on average over the observed sizes."""

    buckets: tuple[int, ...]
    us: float  # of replays, parts of split requests added up
    padding: float  # padded rows over all rows that are replayed
    split: float  # share of requests that are split


def best_buckets(
    sizes: Mapping[int, int], k: int, cost: Cost, *, whole: bool = False
) -> tuple[int, ...]:
    """The at most `k` buckets that minimise the expected replay time; the fewest of equal ones.

    `sizes`: how often each number of rows (>= 1) was asked for. `cost` must not fall as the bucket
    grows; otherwise CaptureError. `whole`: no request may be split, so one bucket holds the
    largest.
    """
    _check(sizes, k)
    largest = max(sizes)
    times = _times(cost, largest)
    rows = np.array(sorted(sizes), dtype=np.int64)
    counts = np.array([sizes[int(n)] for n in rows], dtype=np.float64)
    bounds = _bounds(rows, counts, k, times)
    best: tuple[float, tuple[int, ...]] = (float("inf"), ())
    tops = [largest] if whole else sorted(range(1, largest + 1), key=bounds.__getitem__)
    for top in tops:
        if bounds[top] > best[0] * _SAME:
            break
        found = _for_largest(rows, counts, top, k, times)
        if _is_better(found, best):
            best = found
    return best[1]


def expect(sizes: Mapping[int, int], buckets: Sequence[int], cost: Cost) -> Expected:
    """What `buckets` costs for the observed sizes."""
    _check(sizes, len(buckets))
    ordered = tuple(sorted(buckets))
    top = ordered[-1]
    rows = np.array(sorted(sizes), dtype=np.int64)
    counts = np.array([sizes[int(n)] for n in rows], dtype=np.float64)
    whole, left = np.divmod(rows, top)
    held = np.array((0, *ordered), dtype=np.int64)
    last = held[np.searchsorted(held, left)]  # the bucket of what is left over, 0 for nothing
    times = {b: cost(b) for b in ordered} | {0: 0.0}
    us = whole * times[top] + np.array([times[int(b)] for b in last])
    replayed = float((counts * (whole * top + last)).sum())
    asked = float((counts * rows).sum())
    total = float(counts.sum())
    split = float(counts[(whole > 0) & (left > 0) | (whole > 1)].sum())
    return Expected(
        ordered, float((counts * us).sum()) / total, 1 - asked / replayed, split / total
    )


def powers_of_two(largest: int, k: int | None = None) -> tuple[int, ...]:
    """1, 2, 4, … up to the first that holds `largest`; with `k` only the k largest of them."""
    found = [1]
    while found[-1] < largest:
        found.append(2 * found[-1])
    return tuple(found if k is None else found[-k:])


def steps_of_eight(largest: int, k: int | None = None) -> tuple[int, ...]:
    """8, 16, 24, … up to the first that holds `largest`; with `k` only so many, evenly spaced."""
    steps = -(-largest // 8)
    if k is None or k >= steps:
        return tuple(8 * i for i in range(1, steps + 1))
    return tuple(8 * -(-steps * i // k) for i in range(1, k + 1))


def interpolated(points: Mapping[int, float]) -> Cost:
    """A cost from measured bucket sizes: straight lines between them, the last line beyond, and the
    first time below.

    Where a larger bucket was measured to be faster than a smaller one, which is noise, both get
    the mean of the two (isotonic regression by pooling adjacent violators, Ayer et al. 1955).
    """
    if not points:
        raise CaptureError("no measured bucket to take costs from")
    at = sorted(points)
    pools: list[tuple[float, int]] = []  # mean, number of points
    for size in at:
        mean, count = float(points[size]), 1
        while pools and pools[-1][0] > mean:
            other, more = pools.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        pools.append((mean, count))
    us = [mean for mean, count in pools for _ in range(count)]
    slope = 0.0 if len(at) < 2 else (us[-1] - us[-2]) / (at[-1] - at[-2])

    def cost(size: int) -> float:
        if size > at[-1]:
            return us[-1] + slope * (size - at[-1])
        return float(np.interp(size, at, us))

    return cost


def _check(sizes: Mapping[int, int], k: int) -> None:
    if k < 1:
        raise CaptureError(f"a bucket list holds 1 bucket or more; got k = {k}")
    if not sizes or min(sizes) < 1 or min(sizes.values()) < 1:
        raise CaptureError("request sizes must be 1 row or more, and at least one is needed")


def _times(cost: Cost, largest: int) -> list[float]:
    """The cost of every bucket up to `largest`; index 0 is nothing at all."""
    times = [0.0, *(float(cost(n)) for n in range(1, largest + 1))]
    for n, (one, other) in enumerate(pairwise(times)):
        if not one <= other:
            raise CaptureError(
                f"a bucket of {n + 1} is said to cost {other:g} µs, less than the {one:g} µs of "
                f"{n}; bucket costs must not fall as buckets grow"
            )
    return times


def _bounds(rows: Array, counts: Array, k: int, times: Sequence[float]) -> list[float]:
    """For each largest bucket the least that it can cost: sizes up to it in at most k buckets, and
    of the sizes above it every remainder in a bucket of its own."""
    seen = np.bincount(rows, weights=counts, minlength=len(times))
    until = np.cumsum(seen).tolist()
    layer = [0.0] + [float("inf")] * (len(times) - 1)
    least = list(layer)
    for _ in range(k):
        layer, _ = _layer(layer, until, times)
        least = [min(pair) for pair in zip(least, layer, strict=True)]
    t = np.asarray(times)
    for top in range(1, len(times)):
        above = rows > top
        whole, left = np.divmod(rows[above], top)
        least[top] += float((counts[above] * (whole * t[top] + t[left])).sum())
    return least


def _for_largest(
    rows: Array, counts: Array, top: int, k: int, times: Sequence[float]
) -> tuple[float, tuple[int, ...]]:
    """The total cost and the buckets of the best list whose largest bucket is `top`."""
    whole, left = np.divmod(rows, top)
    seen = np.bincount(left, weights=counts, minlength=top + 1)
    seen[0] = 0.0
    split = float((counts * whole).sum()) * times[top]
    places = [0, *(int(n) for n in np.flatnonzero(seen) if n < top), top]
    until = np.cumsum(seen)[places].tolist()  # requests of at most so many rows
    t = [times[n] for n in places]
    last = len(places) - 1
    layers: list[list[int]] = []  # of each j and place, the place before it
    best = [0.0] + [float("inf")] * last
    found: tuple[float, int] = (float("inf"), 0)
    for j in range(1, min(k, last) + 1):
        best, before = _layer(best, until, t)
        layers.append(before)
        if best[last] * _SAME < found[0]:
            found = (best[last], j)
    buckets, at = [], last
    for before in reversed(layers[: found[1]]):
        buckets.append(places[at])
        at = before[at]
    return split + found[0], tuple(sorted(buckets))


def _layer(
    best: Sequence[float], until: Sequence[float], t: Sequence[float]
) -> tuple[list[float], list[int]]:
    """One more bucket: the least cost of each place, and the place of the bucket before it."""
    found = [float("inf")] * len(best)
    before = [0] * len(best)
    hull: list[int] = []  # lines best[a] - until[a] x; slopes fall
    head = 0
    for b in range(1, len(best)):
        a = b - 1
        if best[a] < float("inf"):
            while len(hull) - head >= 2 and _useless(best, until, hull[-2], hull[-1], a):
                hull.pop()
            if len(hull) > head and until[hull[-1]] == until[a]:
                if best[hull[-1]] <= best[a]:
                    a = -1
                else:
                    hull.pop()
            if a >= 0:
                hull.append(a)
        while len(hull) - head >= 2 and _at(best, until, hull[head + 1], t[b]) <= _at(
            best, until, hull[head], t[b]
        ):
            head += 1
        if len(hull) > head:
            found[b] = _at(best, until, hull[head], t[b]) + t[b] * until[b]
            before[b] = hull[head]
    return found, before


def _at(best: Sequence[float], until: Sequence[float], a: int, x: float) -> float:
    return best[a] - until[a] * x


def _useless(
    best: Sequence[float], until: Sequence[float], one: int, middle: int, other: int
) -> bool:
    """Whether the middle line is nowhere below both others; slopes fall from one to other."""
    return (best[other] - best[one]) * (until[middle] - until[one]) <= (
        best[middle] - best[one]
    ) * (until[other] - until[one])


def _is_better(one: tuple[float, tuple[int, ...]], other: tuple[float, tuple[int, ...]]) -> bool:
    """Whether a cost and its buckets are lower, or as low with fewer, or with smaller ones."""
    if one[0] * _SAME < other[0] or other[0] * _SAME < one[0]:
        return one[0] < other[0]
    return (len(one[1]), one[1]) < (len(other[1]), other[1])
