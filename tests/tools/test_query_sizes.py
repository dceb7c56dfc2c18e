from __future__ import annotations

import numpy as np
import pytest

from recreplay.tools.query_sizes import DISTRIBUTIONS, LARGEST, draw_sizes, histogram

# Mean, median, 75th, 95th and 99th percentile, as others have simulated them.
PUBLISHED = {
    "lognormal": (166.9, 164, 187, 228, 261),
    "kairos": (238.7, 177, 242, 606, 921),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_of_published_traffic(name: str) -> None:
    sizes = draw_sizes(name, 200_000)
    found = (sizes.mean(), *np.percentile(sizes, [50, 75, 95, 99]))
    assert found == pytest.approx(PUBLISHED[name], rel=0.02)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_trace_is_whole_rows_and_repeatable(name: str) -> None:
    sizes = draw_sizes(name, 5_000, seed=4)
    assert sizes.dtype == np.int64
    assert sizes.min() >= 1
    assert sizes.max() <= LARGEST
    assert np.array_equal(sizes, draw_sizes(name, 5_000, seed=4))
    assert not np.array_equal(sizes, draw_sizes(name, 5_000, seed=5))
    assert sum(histogram(sizes).values()) == 5_000


def test_the_heavy_tail_of_kairos() -> None:
    sizes = draw_sizes("kairos", 100_000)
    assert (sizes < 100).mean() == pytest.approx(8 / 99, abs=0.005)
    assert (sizes >= 600).mean() == pytest.approx(5 / 99, abs=0.005)
    assert sizes.max() == 999
