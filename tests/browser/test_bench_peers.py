"""Result files of `bench --peers` on the page: every contender, the floor, who is absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from driving import Page

from recreplay.tools.cli import app

pytestmark = pytest.mark.browser


@pytest.fixture(scope="session")
def peers_page(
    rec_path: Path, write_page: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A page with a result of a model, measured here and now."""
    from typer.testing import CliRunner

    out = tmp_path_factory.mktemp("peers") / "peers.json"
    command = (
        "bench recreplay.models:ncf --arg rows_scale=0.001 --compiler eager --buckets 1,4 --runs 3 "
        "--peers eager,cuda_graph --out"
    )
    result = CliRunner().invoke(app, [*command.split(), str(out)])
    assert result.exit_code == 0, result.stderr
    return write_page(rec_path, "--bench", str(out)), out


@pytest.mark.parametrize("width", [1280, 390])
def test_contenders_and_the_floor(page: Page, peers_page: tuple[Path, Path], width: int) -> None:
    metrics = {"width": width, "height": 720, "deviceScaleFactor": 1, "mobile": width < 600}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.open(peers_page[0], "bench")
    (result,) = json.loads(peers_page[1].read_text())["results"]
    charts = page.js(
        "return [...document.querySelectorAll('svg.chart')].map(c => "
        "[...c.querySelectorAll('text')].map(t => t.textContent))"
    )
    assert len(charts) == len(result["batches"]) == 2
    for texts, batch in zip(charts, result["batches"], strict=True):
        assert texts[::3] == ["eager", "ours", "floor"]
        ratio = batch["contenders"][0]["to_ours"]["ratio"]
        assert texts[2].startswith(f"{ratio:.2f}x (")
        assert texts[5] == f"{batch['floor']['ours_to_floor']:.2f}x the floor"
        assert texts[8] == batch["floor"]["bound"]
    assert "cuda_graph: absent: records CUDA graphs" in page.text("main")
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
