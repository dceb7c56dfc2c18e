"""Bucket lists from traffic: optimal against brute force, and better than lists by rule."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recreplay.capture.buckets import (
    best_buckets,
    expect,
    interpolated,
    powers_of_two,
    steps_of_eight,
)
from recreplay.runtime.errors import CaptureError
from recreplay.tools.query_sizes import draw_sizes, histogram

SIZES = st.dictionaries(st.integers(1, 11), st.integers(1, 50), min_size=1, max_size=11)
STEPS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.5]), min_size=11, max_size=11)


@settings(max_examples=200, deadline=None)
@given(sizes=SIZES, k=st.integers(1, 4), first=st.sampled_from([0.0, 1.0, 10.0]), steps=STEPS)
def test_no_list_is_better(sizes: dict[int, int], k: int, first: float, steps: list[float]) -> None:
    """Whatever the costs, as long as they do not fall: all lists of at most k buckets are tried."""
    cost = {n: first + sum(steps[:n]) for n in range(1, 12)}.__getitem__
    found = best_buckets(sizes, k, cost)
    assert 1 <= len(found) <= k
    every = [c for j in range(1, k + 1) for c in combinations(range(1, max(sizes) + 1), j)]
    least = min(expect(sizes, c, cost).us for c in every)
    assert expect(sizes, found, cost).us == pytest.approx(least, abs=1e-9)
    whole = best_buckets(sizes, k, cost, whole=True)  # where nothing may be split
    assert len(whole) <= k
    assert whole[-1] == max(sizes)
    least = min(expect(sizes, c, cost).us for c in every if c[-1] == max(sizes))
    assert expect(sizes, whole, cost).us == pytest.approx(least, abs=1e-9)


def test_what_a_list_costs() -> None:
    """3 runs in 4; 8 in 8; 20 in 8, 8 and 4; 16 in 8 twice."""
    found = expect({3: 1, 8: 1, 20: 1, 16: 1}, (8, 4), lambda n: 10.0 + n)
    assert found.buckets == (4, 8)
    assert found.us == pytest.approx((14 + 18 + 50 + 36) / 4)
    assert found.padding == pytest.approx(1 / 48)
    assert found.split == 0.5


def test_flat_costs_need_one_bucket() -> None:
    assert best_buckets({5: 3, 90: 1}, 8, lambda n: 7.0) == (90,)


def test_costs_that_differ_by_rounding_are_equal() -> None:
    """Nothing runs in 3, whose cost takes part in the sums."""
    costs = [0.2, 0.2, 0.3, 1.6, 1.7, 3.0, 3.1, 3.1]
    assert best_buckets({7: 33, 2: 33, 8: 15}, 3, lambda n: costs[n - 1]) == (2,)


def test_splitting_wins_where_a_call_costs_nothing() -> None:
    assert best_buckets({100: 1}, 1, lambda n: float(n * n)) == (1,)
    assert best_buckets({100: 1}, 1, lambda n: 50.0 + n) == (100,)


@pytest.mark.parametrize("name", ["lognormal", "kairos"])
@pytest.mark.parametrize(("call", "row"), [(20.0, 5.0), (60.0, 0.5), (500.0, 0.1)])
def test_published_traffic(name: str, call: float, row: float) -> None:
    """Eight buckets beat eight powers of two, all powers of two, and eight steps of eight."""
    sizes = histogram(draw_sizes(name, 20_000, seed=3))
    largest = max(sizes)

    def cost(n: int) -> float:
        return call + row * n

    best = expect(sizes, best_buckets(sizes, 8, cost), cost)
    for other in (powers_of_two(largest, 8), powers_of_two(largest), steps_of_eight(largest, 8)):
        against = expect(sizes, other, cost)
        assert best.us < against.us
        assert best.padding < against.padding


def test_as_many_buckets_as_all_steps_of_eight() -> None:
    sizes = histogram(draw_sizes("normal_165", 20_000))
    steps = steps_of_eight(max(sizes))
    assert len(steps) == 29

    def cost(n: int) -> float:
        return 60.0 + 0.5 * n

    best = expect(sizes, best_buckets(sizes, len(steps), cost), cost)
    assert best.us < expect(sizes, steps, cost).us


def test_lists_by_rule() -> None:
    assert powers_of_two(100) == (1, 2, 4, 8, 16, 32, 64, 128)
    assert powers_of_two(128, 3) == (32, 64, 128)
    assert steps_of_eight(30) == (8, 16, 24, 32)
    assert steps_of_eight(999, 4) == (256, 504, 752, 1000)
    assert steps_of_eight(9, 8) == (8, 16)


@given(st.dictionaries(st.integers(1, 300), st.floats(0, 1e6), min_size=1, max_size=12))
def test_measured_costs_never_fall(points: dict[int, float]) -> None:
    cost = interpolated(points)
    times = [cost(n) for n in range(1, 350)]
    assert all(one <= other + 1e-6 for one, other in pairwise(times))
    assert min(points.values()) - 1e-6 <= times[0] <= max(points.values())


def test_measured_costs_are_met_where_they_rise() -> None:
    cost = interpolated({8: 20.0, 1: 10.0, 16: 50.0})
    assert [cost(n) for n in (1, 8, 12, 16, 32)] == [10.0, 20.0, 35.0, 50.0, 110.0]
    noisy = interpolated({1: 12.0, 2: 10.0, 4: 30.0})
    assert [noisy(n) for n in (1, 2, 4)] == [11.0, 11.0, 30.0]


def test_what_makes_no_sense() -> None:
    with pytest.raises(CaptureError, match=r"1 bucket or more; got k = 0"):
        best_buckets({1: 1}, 0, float)
    with pytest.raises(CaptureError, match=r"must be 1 row or more"):
        best_buckets({0: 1}, 1, float)
    with pytest.raises(CaptureError, match=r"bucket of 3 is said to cost 1 µs, less than the 2 µs"):
        best_buckets({3: 1}, 1, [0.0, 1.0, 2.0, 1.0].__getitem__)
    with pytest.raises(CaptureError, match=r"no measured bucket"):
        interpolated({})
