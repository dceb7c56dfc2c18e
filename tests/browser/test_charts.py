"""Charts at both widths: no text lies over another, and bars are as long as they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from driving import Page
from torch import nn

from recreplay.capture import capture

pytestmark = pytest.mark.browser
BUCKETS = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 100, 104, 108, 1000, 4000]  # as `--buckets auto` chooses
# Pairs of texts of one chart that overlap.
OVERLAPS = """
return [...document.querySelectorAll('svg.chart')].flatMap(chart => {
  const texts = [...chart.querySelectorAll('text')]
    .map(t => [t.textContent, t.getBoundingClientRect()]);
  return texts.flatMap(([a, one], i) => texts.slice(i + 1).filter(([, other]) =>
    one.left < other.right - 1 && other.left < one.right - 1 &&
    one.top < other.bottom - 3 && other.top < one.bottom - 3).map(([b]) => `${a} over ${b}`));
});
"""
# The width of each bar over that of the first, for one chart.
BARS = """
const rects = [...document.querySelector('svg.chart').querySelectorAll('rect')];
const wide = rects.map(r => Number(r.getAttribute('width')));
return wide.map(w => w / wide[0]);
"""


@pytest.fixture(scope="session")
def crowded_page(write_page: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many buckets, some of them close to each other, and a result file with six contenders."""
    out = tmp_path_factory.mktemp("crowded") / "crowded.rr"
    model = nn.Linear(4, 1).eval()
    capture(model, {"input": torch.randn(2, 4)}, out=out, buckets=BUCKETS, compiler="eager")
    results = Path(__file__).parents[2] / "tools" / "bench" / "results" / "cpu-core.json"
    return write_page(out, "--measure", "--runs", "3", "--bench", str(results))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("view", ["buckets", "bench"])
def test_texts_of_charts_lie_apart(page: Page, crowded_page: Path, view: str, width: int) -> None:
    metrics = {"width": width, "height": 720, "deviceScaleFactor": 1, "mobile": width < 600}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.open(crowded_page, view)
    assert page.js(OVERLAPS) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_bars_are_as_long_as_they_say(page: Page, crowded_page: Path, width: int) -> None:
    metrics = {"width": width, "height": 720, "deviceScaleFactor": 1, "mobile": width < 600}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.open(crowded_page, "bench")
    times = page.js(
        "const b = recreplay.data.benches[0].results[0].batches[0];"
        "return [...b.contenders.map(c => c.latency_us.p50), b.floor.us]"
    )
    assert page.js(BARS) == pytest.approx([t / times[0] for t in times])
