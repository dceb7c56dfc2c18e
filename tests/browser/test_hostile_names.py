"""Names come from whoever wrote the model. They are text, whatever is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from driving import Page
from torch import Tensor, nn

from recreplay.capture import capture
from recreplay.runtime.artifact import open_artifact
from recreplay.tools.view.data import page_data
from recreplay.tools.view.page import inline_json, render

# torch.export itself fails on quotes and backslashes in a name: these are put in afterwards.
QUOTE, SINGLE, BACKSLASH = "<<quote>>", "<<single>>", "<<backslash>>"
NAMES = (
    "</script><script>window.broken = 1</script>",
    f"{QUOTE}><img src=x onerror={QUOTE}window.broken = 2{QUOTE}>",
    f"{{{{script}}}} ${{window.broken = 3}} `{SINGLE}{BACKSLASH} \u2028 \u2029",
    "Größe_数量_🛒",
    "long" * 250,
)
MODULES = ("</script>", "a&amp;d_数量", "m" * 1000)


class Hostile(nn.Module):
    """A lookup for each name, in modules that are named as badly."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(9, 4 + i) for i in range(len(NAMES)))
        for name in MODULES:
            self.add_module(name, nn.Linear(4, 4))
        self.top = nn.Linear(sum(4 + i for i in range(len(NAMES))), 1)

    def forward(self, ids: dict[str, Tensor]) -> Tensor:
        found = [table(ids[name]) for table, name in zip(self.tables, NAMES, strict=True)]
        for name in MODULES:
            found[0] = getattr(self, name)(found[0])
        score: Tensor = self.top(torch.cat(found, dim=1))
        return score


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile") / "hostile.rr"
    example = {"ids": {name: torch.randint(0, 9, (4,)) for name in NAMES}}
    capture(
        Hostile().eval(),
        example,
        out=out,
        buckets=[4],
        compiler="eager",
        strategy="feature",
        rewrites=(),
    )
    opened = open_artifact(out)
    data = json.dumps(page_data(opened, {}))
    for mark, meant in ((QUOTE, '"'), (SINGLE, "'"), (BACKSLASH, "\\")):
        data = data.replace(mark, json.dumps(meant)[1:-1])
    target = out.parent / "page.html"
    target.write_text(render(json.loads(data)))
    return target


def named(name: str) -> str:
    """A name as it is once the page is made."""
    return name.replace(QUOTE, '"').replace(SINGLE, "'").replace(BACKSLASH, "\\")


def test_data_cannot_end_its_own_element() -> None:
    text = inline_json({"names": NAMES, "odd": [float("nan"), float("inf"), "\ud800"]})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"names": list(NAMES), "odd": [None, None, "\ud800"]}


@pytest.mark.browser
def test_names_are_shown_as_text(page: Page, hostile_page: Path) -> None:
    features = [f"ids_{named(name)}" for name in NAMES]
    page.open(hostile_page, "timeline?level=operators")
    assert page.js("return recreplay.data.artifact.inputs.map(i => i.name)") == features
    branches = page.js("return recreplay.views.timeline.layout().bars.map(b => b.operator.branch)")
    assert set(features) <= set(branches)
    for at, branch in enumerate(branches):
        if branch is None:
            continue
        page.js(
            "recreplay.state.selected = recreplay.views.timeline.layout().bars[arguments[0]].name;"
            "recreplay.change({ bucket: 0 })",
            at,
        )
        assert branch in page.text(".side")
    for view in ("assignment", "compare", "buckets", "timeline?level=segments"):
        page.open(hostile_page, view)
        assert page.js("return window.broken") is None
        assert page.js("return document.querySelectorAll('script').length") == 2
        assert page.js("return document.querySelectorAll('img, b:not(.note b)').length") == 0
        assert page.js("return document.documentElement.scrollWidth") <= 1280
    page.open(hostile_page, "buckets")
    shown = page.text("#main")
    assert all(name[:100] in shown for name in features)
    modules = page.js("return recreplay.data.buckets[0].graph.operators.map(o => o[2])")
    assert set(MODULES) <= set(modules)
