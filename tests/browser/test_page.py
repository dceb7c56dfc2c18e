"""The page in a real browser: it shows the plan, and everything on it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from driving import Page

from recreplay.capture import capture
from recreplay.capture.schedule import side_by_side
from recreplay.models import streamrec
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.graph import read_graph
from recreplay.runtime.plan import Plan
from recreplay.tools.view.data import page_data
from recreplay.tools.view.kernels import Kernel
from recreplay.tools.view.measured import Measured
from recreplay.tools.view.page import render

pytestmark = pytest.mark.browser
VIEWS = ("timeline", "assignment", "compare", "buckets", "bench")
DRAWN = """
const l = recreplay.views.timeline.layout();
return {
  lanes: l.lanes.map(lane => lane.map(b => b.name)),
  bars: l.bars.map(b => [b.name, b.stream]),
  waits: l.waits.map(w => [w.from, w.to]), kinds: l.waits.map(w => w.kind),
};
"""
# Where the middle of bar `arguments[0]` is on the canvas.
PLACE = """
const v = recreplay.views.timeline, g = v.geometry(), bar = v.layout().bars[arguments[0]];
return [g.at(bar.start + bar.duration / 2), g.laneTop(bar.stream, g.laneHeight) + g.laneHeight / 2];
"""


def assert_drawn(drawn: dict[str, Any], plan: Plan) -> None:
    assert drawn["bars"] == [[step.name, step.stream] for step in plan.steps]
    lanes = [[s.name for s in plan.steps if s.stream == lane] for lane in range(plan.streams)]
    assert drawn["lanes"] == lanes
    assert drawn["waits"] == [[w, i] for i, step in enumerate(plan.steps) for w in step.waits]
    edges = set(plan.edges)
    expected = ["data" if tuple(pair) in edges else "order" for pair in drawn["waits"]]
    assert drawn["kinds"] == expected


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("width", [1280, 390])
def test_every_view_opens_without_an_error_and_without_scrolling_sideways(
    page: Page, rec_page: Path, view: str, width: int
) -> None:
    metrics = {"width": width, "height": 720, "deviceScaleFactor": 1, "mobile": width < 600}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.open(rec_page, view)
    assert page.text('[role="tab"][aria-selected="true"]').lower() == view
    assert page.text("#main")
    assert page.js("return document.documentElement.scrollWidth") <= width
    assert page.js("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("size", [1, 8, 64])
def test_lanes_bars_and_waits_are_the_plan(
    page: Page, rec_page: Path, rec_path: Path, size: int
) -> None:
    page.open(rec_page, "timeline?bucket=64&level=segments")
    page.choose("bucket", str(size))
    artifact = open_artifact(rec_path)
    bucket = next(b for b in artifact.manifest.buckets if b.size == size)
    assert bucket.plan.streams > 1
    assert_drawn(page.js(DRAWN), bucket.plan)
    page.press('[data-value="operators"]')
    assert_drawn(page.js(DRAWN), read_graph(rec_path)[size].captured.plans[0])


def test_every_strategy_can_be_looked_at(page: Page, rec_page: Path, rec_path: Path) -> None:
    page.open(rec_page, "timeline?bucket=8&level=segments")
    for plan in read_graph(rec_path)[8].captured.plans[1:]:
        page.choose("strategy", plan.strategy)
        assert_drawn(page.js(DRAWN), plan)
    page.press('[data-view="compare"]')
    shown = page.js(
        "return [...document.querySelectorAll('[data-strategy]')].map(e => e.dataset.strategy)"
    )
    assert shown == ["single", "feature", "matching", "greedy"]


def test_a_click_on_a_bar_shows_it_and_its_pixels_are_of_its_stream(
    page: Page, rec_page: Path, rec_path: Path
) -> None:
    page.open(rec_page, "timeline?bucket=64&level=segments")
    plan = open_artifact(rec_path).manifest.buckets[-1].plan
    for index, step in enumerate(plan.steps):
        x, y = page.js(PLACE, index)
        page.click_at(x, y)
        assert page.text(".side h2") == step.name
    page.press('[data-value="operators"]')
    colours = page.js("""
        const v = recreplay.views.timeline, g = v.geometry(), canvas = v.surface().canvas;
        v.surface().paint();
        const options = { willReadFrequently: true };
        const copy = document.createElement('canvas').getContext('2d', options);
        [copy.canvas.width, copy.canvas.height] = [canvas.width, canvas.height];
        copy.drawImage(canvas, 0, 0);
        return v.layout().bars.slice(0, 12).map(b => {
          const x = g.at(b.start + b.duration / 2), y = g.laneTop(b.stream, g.laneHeight) + 7;
          return [b.stream, [...copy.getImageData(x, y, 1, 1).data].slice(0, 3)];
        });
    """)
    palette = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167]]
    assert all(colour == palette[stream] for stream, colour in colours)


def test_a_segment_leads_to_its_operators(page: Page, rec_page: Path, rec_path: Path) -> None:
    page.open(rec_page, "timeline?bucket=64&level=segments")
    page.click_at(*page.js(PLACE, 0))
    page.press(".ops button")
    first = open_artifact(rec_path).manifest.buckets[-1].segments[0].operators[0]
    assert page.text(".side h2") == first
    for label in ("Module", "Shape", "Bytes", "Flops", "Stream", "Waits for", "Time"):
        assert label in page.text(".side")


def test_search_finds_by_module_and_counts(page: Page, rec_page: Path, rec_path: Path) -> None:
    graph = read_graph(rec_path)[64].captured
    expected = sum("branches.3." in op.module for op in graph.operators)
    assert expected > 1
    for view in ("timeline", "assignment"):
        page.open(rec_page, f"{view}?bucket=64&level=operators")
        page.type("branches.3.")
        assert page.text(".count") == f"{expected} matches"
        page.type("branches.3.\n")
        assert page.js("return recreplay.views[arguments[0]].chosen() !== null", view)


def test_the_keyboard_reaches_everything(page: Page, rec_page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.open(rec_page, "timeline?bucket=64&level=operators")
    seen = []
    for _ in range(14):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        seen.append(page.js("return document.activeElement.tagName"))
        if seen[-1] == "CANVAS":
            break
    assert {"A", "BUTTON", "SELECT", "INPUT", "CANVAS"} <= set(seen)
    names = page.js("return recreplay.views.timeline.layout().bars.map(b => b.name)")
    for key, at in ((Keys.END, -1), (Keys.HOME, 0)):
        ActionChains(page.driver).send_keys(key).perform()
        assert page.text(".side h2") == names[at]
    ActionChains(page.driver).send_keys(Keys.ESCAPE, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
    lane = page.js("return recreplay.views.timeline.layout().lanes[0].map(b => b.name)")
    assert page.text(".side h2") == lane[1]
    ActionChains(page.driver).send_keys(Keys.ARROW_DOWN).perform()
    assert page.js("return recreplay.views.timeline.chosen().stream") == 1
    before = page.js("return recreplay.views.timeline.surface().scale")
    ActionChains(page.driver).send_keys("+").perform()
    assert page.js("return recreplay.views.timeline.surface().scale") > before


def test_features_are_said_to_be_joined_only_where_they_are(page: Page, tmp_path: Path) -> None:
    class Straight(torch.nn.Module):
        """One feature has an operator of its own before and after; the trunk reads the other."""

        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(10, 4)
            self.linear = torch.nn.Linear(8, 1)

        def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.cat([self.table(ids), dense], 1))

    example = {"ids": torch.arange(2), "dense": torch.randn(2, 4)}
    joining = streamrec(features=4, rows_scale=0.001)
    models: tuple[Any, ...] = ((Straight().eval(), example, False), (joining, None, True))
    for model, inputs, joined in models:
        out = tmp_path / f"{type(model).__name__}.rr"
        capture(model, inputs, out=out, buckets=[2], compiler="eager")
        shown = out.with_suffix(".html")
        shown.write_text(render(page_data(open_artifact(out), {})))
        page.open(shown, "assignment")
        assert "before rewrites" in page.text(".note")
        assert ("Rewrites that join features" in page.text(".note")) is joined


def test_the_graph_is_shown_before_and_after_rewrites(
    page: Page, rec_page: Path, rec_path: Path
) -> None:
    graph = read_graph(rec_path)[64]
    assert graph.before is not None
    counted = "return recreplay.views.assignment.layout().nodeOf.filter(n => n).length"
    page.open(rec_page, "assignment?bucket=64")
    assert page.js(counted) == len(graph.captured.operators)
    page.press('[data-value="before"]')
    assert page.js(counted) == len(graph.before.operators)
    folded = page.js("return recreplay.views.assignment.layout().bands.length")
    page.press('[data-name="fold"]')
    features = len({op.branch for op in graph.before.operators if op.branch})
    unfolded = page.js("return recreplay.views.assignment.layout().bands.length")
    assert unfolded == features + 1 > folded


def test_measured_times_are_shown_and_said_to_be(page: Page, rec_page: Path) -> None:
    page.open(rec_page, "timeline?bucket=64&level=segments")
    assert "measured" in page.text(".note")
    assert "one after the other" in page.text(".note")
    assert page.text('[data-stat="replay"]') != "not measured"
    page.driver.find_elements("css selector", '[aria-label="Times"] button')[1].click()
    assert "modelled" in page.text(".note")


def test_requests_that_run_in_parts_are_shown_so(
    page: Page, rec_path: Path, tmp_path: Path
) -> None:
    artifact = open_artifact(rec_path)
    measured = {
        bucket.size: Measured(5, (us,) * len(bucket.segments), {"p50": us, "p99": us})
        for bucket, us in zip(artifact.manifest.buckets, (10.0, 20.0, 500.0), strict=True)
    }
    data = page_data(artifact, measured)
    data["artifact"]["buckets"][2]["portion"] = 8  # as where the tuner measured 500 and 20
    (tmp_path / "parts.html").write_text(render(data))
    page.open(tmp_path / "parts.html", "buckets")
    rows = page.js(
        "return [...document.querySelector('tbody').rows].map(r => "
        "[...r.cells].map(c => c.textContent))"
    )
    assert [row[0] for row in rows] == ["1", "8", "64 by 8"]
    assert [row[8] for row in rows] == ["0 %", "75 %", "–"]  # padding: not of the whole bucket
    labels = page.js("return [...document.querySelectorAll('.strong')].map(t => t.textContent)")
    assert sorted(labels) == ["10 µs", "160 µs", "20 µs"]
    assert "in several replays of a smaller one" in page.text("#main")


def test_a_lower_precision_is_held_against_its_own_bound(
    page: Page, rec_path: Path, tmp_path: Path
) -> None:
    data = page_data(open_artifact(rec_path), {})
    data["artifact"] |= {"precision": "bf16", "table_precision": "int8", "max_error": 0.02}
    for bucket in data["artifact"]["buckets"]:
        bucket["parity"] |= {"outputs": [{"output": "output", "max_abs": 0.003, "scale": 0.5}]}
    (tmp_path / "low.html").write_text(render(data))
    page.open(tmp_path / "low.html", "buckets")
    text = page.text("#main")
    assert "bf16, tables int8" in text
    assert (
        "Replay against the float32 model, at capture: at most 0.02 of an output's scale." in text
    )
    assert "6.0e-3" in text
    assert "rtol" not in text


def test_the_kernels_of_a_segment_are_listed(page: Page, rec_path: Path, tmp_path: Path) -> None:
    """As a profiler saw a replay on CUDA; the times are made up here."""
    artifact = open_artifact(rec_path)
    durations = [8.0] * len(artifact.manifest.buckets[-1].plan.steps)
    starts = side_by_side(artifact.manifest.buckets[-1].plan, durations).starts
    name = "void gemm<float, 128>(float const*)"
    kernels = tuple((Kernel(name, start, 7.25),) for start in starts)
    size = artifact.manifest.buckets[-1].size
    seen = Measured(1, tuple(durations), {"p50": 50.0}, starts, kernels)
    out = tmp_path / "kernels.html"
    out.write_text(render(page_data(artifact, {size: seen}, [])))
    page.open(out, f"timeline?bucket={size}&level=segments")
    assert "kernel by kernel" in page.text(".note")
    page.click_at(*page.js(PLACE, 0))
    listed = page.text(".kernels")
    assert name in listed
    assert "7.25" in listed


def test_nothing_moves_while_it_is_used(page: Page, rec_page: Path) -> None:
    page.open(rec_page, "timeline?bucket=64&level=segments")
    page.js("""
        window.moved = 0;
        new PerformanceObserver(list => { for (const e of list.getEntries()) moved += e.value; })
          .observe({ type: 'layout-shift', buffered: true });
    """)
    page.click_at(*page.js(PLACE, 0))
    page.wait_js("requestAnimationFrame(() => setTimeout(arguments[0], 200))")
    assert page.js("return moved") < 0.01


CONTRASTS = """
const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
const luminance = colour => {
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
    .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
const style = getComputedStyle(document.documentElement), value = n => style.getPropertyValue(n);
const found = {};
for (const ground of ['--card', '--page'])
  for (const text of ['--ink', '--soft', '--accent', '--warn', '--good'])
    found[`${text} on ${ground}`] = ratio(value(text), value(ground));
found['--accent-ink on --accent'] = ratio(value('--accent-ink'), value('--accent'));
for (const [colour, ink] of recreplay.palette) found[`${ink} on ${colour}`] = ratio(ink, colour);
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_aa_asks_for(
    page: Page, rec_page: Path, scheme: str
) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page.open(rec_page, "timeline")
    found = page.js(CONTRASTS)
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(found) == 19
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}
