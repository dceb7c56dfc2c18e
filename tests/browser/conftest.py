"""A headless Chromium, and pages made of real artifacts for it to open."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from driving import Page
from typer.testing import CliRunner

from recreplay.capture import capture
from recreplay.models import streamrec
from recreplay.tools.cli import app

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # CI runs as root, where the sandbox does not start
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1280,720",
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium or chromedriver (Debian: apt install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Service(executable_path=DRIVER), options=options)
    driver.set_script_timeout(60)
    try:
        yield Page(driver)
    finally:
        driver.quit()


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """The browser in its usual size; nothing may be left on its console."""
    metrics = {"width": 1280, "height": 720, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.errors()
    yield browser
    assert browser.errors() == []


@pytest.fixture(scope="session")
def write_page(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def write(artifact: Path, *options: str) -> Path:
        out = tmp_path_factory.mktemp("page") / "page.html"
        result = CliRunner().invoke(app, ["view", str(artifact), "--out", str(out), *options])
        assert result.exit_code == 0, result.stderr
        return out

    return write


@pytest.fixture(scope="session")
def rec_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve features on four streams in three buckets, with rewrites."""
    out = tmp_path_factory.mktemp("rec") / "rec.rr"
    model = streamrec(features=12, rows_scale=0.01)
    options: dict[str, Any] = {
        "strategy": "matching",
        "streams": 4,
        "compiler": "eager",
        "rewrites": ("stack_lookups",),
    }
    capture(model, out=out, buckets=[1, 8, 64], **options)
    return out


@pytest.fixture(scope="session")
def rec_page(rec_path: Path, write_page: Callable[..., Path]) -> Path:
    return write_page(rec_path, "--measure", "--runs", "5")
