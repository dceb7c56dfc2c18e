"""400 features: the page opens at once and pans smoothly, folded and unfolded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import Page
from torch import Tensor, nn

from recreplay.capture import capture

FEATURES = 400
pytestmark = pytest.mark.browser
PAN = """
const done = arguments[arguments.length - 1], surface = recreplay.views[arguments[0]].surface();
surface.zoom(arguments[1]);
surface.frames.length = 0;
let count = 0;
requestAnimationFrame(function step() {
  surface.pan(count % 80 < 40 ? -7 : 7, count % 30 < 15 ? -5 : 5);
  if (++count < 90) requestAnimationFrame(step);
  else requestAnimationFrame(() => done(surface.frames.length));
});
"""


class Wide(nn.Module):
    """Four operators a feature, where StreamRec has seven, which take a minute to trace. So the
    bounds below are half of what a page may take."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(50, 4) for _ in range(FEATURES))
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(FEATURES))
        self.top = nn.Linear(4 * FEATURES, 1)

    def forward(self, ids: list[Tensor]) -> Tensor:
        parts = zip(self.tables, self.layers, ids, strict=True)
        found = [layer(table(of).sum(1)).relu() for table, layer, of in parts]
        scores: Tensor = self.top(torch.cat(found, 1)).sigmoid()
        return scores


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory, write_page: Callable[..., Path]) -> Path:
    out = tmp_path_factory.mktemp("large") / "large.rr"
    ids = [torch.randint(0, 50, (4, 4)) for _ in range(FEATURES)]
    options: dict[str, Any] = {"strategy": "matching", "rewrites": (), "compiler": "eager"}
    capture(Wide().eval(), (ids,), out=out, buckets=[64], **options)
    return write_page(out)


def test_400_features_are_drawn_at_once(page: Page, large_page: Path) -> None:
    for view in ("timeline?level=operators", "assignment", "compare", "buckets"):
        page.open(large_page, view)
        assert page.js("return Number(document.documentElement.dataset.ready)") < 1000


def test_400_features_are_folded_until_asked_for(page: Page, large_page: Path) -> None:
    page.open(large_page, "assignment")
    assert page.js("return recreplay.views.assignment.layout().bands.length") < 10
    page.press('[data-name="fold"]')
    assert page.js("return recreplay.views.assignment.layout().bands.length") == 401


def work(page: Page) -> float:
    """Seconds of a core that the page has used in its thread, by Chromium's own count."""
    found = page.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float({each["name"]: each["value"] for each in found}["TaskDuration"])


def work_per_frame(page: Page, view: str, zoom: float) -> float:
    """Seconds of a core for each frame of a pan. Time by the clock would be that of whatever else
    has the cores, which here is another test's compiler."""
    page.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    before = work(page)
    frames = page.wait_js(PAN, view, zoom)
    assert frames >= 90
    spent = (work(page) - before) / frames
    page.driver.execute_cdp_cmd("Performance.disable", {})
    return spent


def test_400_features_pan_with_work_for_more_than_60_frames_a_second(
    page: Page, large_page: Path
) -> None:
    page.open(large_page, "timeline?level=operators")
    for zoom in (1, 12):
        assert work_per_frame(page, "timeline", zoom) < 1 / 60
    page.press('[data-view="assignment"]')
    page.press('[data-name="fold"]')
    for zoom in (1, 0.2):
        assert work_per_frame(page, "assignment", zoom) < 1 / 60
