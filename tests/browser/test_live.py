"""The served page: its numbers are those of a runtime, and they move."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driving import Page

from recreplay.capture import Jagged, capture
from recreplay.models import two_tower
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.tools.view.data import page_data
from recreplay.tools.view.live import LiveTraffic
from recreplay.tools.view.page import render
from recreplay.tools.view.serve import PageServer


@pytest.fixture(scope="module")
def server(rec_path: Path) -> Iterator[PageServer]:
    opened = open_artifact(rec_path)
    with Runtime.load(rec_path) as runtime:
        made = PageServer(
            render(page_data(opened, {}), live=True), LiveTraffic(opened, runtime, 50.0), 0
        )
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()
        made.server_close()


def test_metrics_are_the_runtimes_own(server: PageServer) -> None:
    before = server.traffic.snapshot()
    for _ in range(40):
        server.traffic.replay_one()
    with urllib.request.urlopen(server.url + "metrics.json") as answer:
        now = json.load(answer)
    assert now["stats"]["requests"] == before["stats"]["requests"] + 40
    assert sum(count for _, count in now["sizes"]) == now["stats"]["requests"]
    assert sum(n * count for n, count in now["sizes"]) == now["stats"]["rows"]
    assert sum(n > 64 for n, _ in now["sizes"]) <= now["stats"]["split_requests"]
    assert set(now["latency_us"]) <= {"1", "8", "64"}


def test_jagged_requests_of_users_are_replayed(tmp_path: Path) -> None:
    """Rows of these cannot be taken from the front of each array."""
    user = two_tower(rows_scale=0.001).user_inputs
    jagged = [Jagged(name, offsets=f"{name}_offsets") for name in ("watched", "searched", "tags")]
    options: dict[str, Any] = {"user_inputs": user, "users": 2, "jagged": jagged}
    out = tmp_path / "jagged.rr"
    capture(two_tower(rows_scale=0.001), out=out, buckets=[1, 8], compiler="eager", **options)
    with Runtime.load(out) as runtime:
        traffic = LiveTraffic(open_artifact(out), runtime, 50.0)
        for _ in range(20):
            traffic.replay_one()
        shown = traffic.snapshot()
    assert (shown["stats"]["requests"], shown["stats"]["failed"]) == (20, 0)
    assert sum(n * count for n, count in shown["sizes"]) == shown["stats"]["rows"]


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("", "evil.example", 403),
        ("metrics.json", "evil.example:80", 403),
        ("../manifest.json", None, 404),
    ],
)
def test_other_names_and_paths_are_refused(
    server: PageServer, path: str, host: str | None, status: int
) -> None:
    request = urllib.request.Request(server.url + path, headers={"Host": host} if host else {})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == status


@pytest.mark.browser
def test_a_live_page_follows_the_runtime(page: Page, server: PageServer) -> None:
    page.open(server.url, "buckets?bucket=64")
    wait = """
        const done = arguments[1], least = arguments[0], begun = performance.now();
        (function look() {
          const found = /([\\d,]+) requests/.exec(document.getElementById('live').textContent);
          const count = found ? Number(found[1].replaceAll(',', '')) : -1;
          if (count >= least || performance.now() - begun > 10000) done(count);
          else setTimeout(look, 50);
        })();
    """
    seen = server.traffic.snapshot()["stats"]["requests"]
    assert page.wait_js(wait, seen) == seen
    for _ in range(25):
        server.traffic.replay_one()
    assert page.wait_js(wait, seen + 25) == seen + 25
    stats = server.traffic.snapshot()["stats"]
    assert f"{stats['padded_rows']:,} rows" in page.text("#main")
