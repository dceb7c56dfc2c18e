"""Pages say what result files say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from recreplay.tools.bench.result_tables import RESULTS, fill_page

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/benchmarks.md", "docs/artifact.md")


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_the_tables_of_pages_are_those_of_their_files(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "<!-- results:" in text
    assert fill_page(text, ROOT / RESULTS) == text, (
        f"run python -m recreplay.tools.bench.result_tables {page}"
    )


def test_every_result_file_is_on_the_page() -> None:
    text = (ROOT / "docs/benchmarks.md").read_text()
    found = list((ROOT / RESULTS).glob("*.json"))
    assert found
    for path in found:
        assert f"<!-- results: {path.name} -->" in text


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert (path.parent / link).exists(), link


def latency(p50: float) -> dict[str, float]:
    return {"p50": p50, "p90": p50, "p95": p50, "p99": p50}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    stamp = {
        "date": "2026-01-02T03:04:05+00:00",
        "cpu": "A CPU",
        "cpu_capability": "AVX2",
        "torch": "2.13.0",
        "load_average": 0.5,
        "commit": "0123456789abcdef",
    }
    batches = [
        {"batch": 1, "replay_us": latency(45.4), "speedup": 8.567},
        {"batch": 16, "replay_us": latency(1235.6), "speedup": 2.81},
    ]
    models = [
        {"name": name, "capture_seconds": 19.2, "batches": batches} for name in ("ncf", "mine")
    ]
    report = {"kind": "recreplay-bench", "stamp": stamp, "results": models}
    (tmp_path / "a.json").write_text(json.dumps(report))
    return tmp_path


def test_a_table_has_a_line_for_each_model_and_its_origin(results: Path) -> None:
    page = "before\n<!-- results: a.json -->\nold\n<!-- end -->\nafter\n"
    assert fill_page(page, results).splitlines() == [
        "before",
        "<!-- results: a.json -->",
        "| model | ours at 1 / 16, µs | × eager | captured in, s |",
        "| --- | ---: | ---: | ---: |",
        "| NCF | 45 / 1,236 | 8.6 / 2.8 | 19 |",
        "| mine | 45 / 1,236 | 8.6 / 2.8 | 19 |",
        "",
        "<sub>`a.json`, 2026-01-02: A CPU (AVX2), torch 2.13.0, load 0.5, "
        "commit 0123456789ab.</sub>",
        "<!-- end -->",
        "after",
    ]


def test_models_can_be_chosen(results: Path) -> None:
    page = "<!-- results: a.json mine -->\n<!-- end -->"
    filled = fill_page(page, results)
    assert "| mine |" in filled
    assert "NCF" not in filled
    assert fill_page(filled, results) == filled
    with pytest.raises(ValueError, match=r"a\.json has no result of din; it has ncf, mine"):
        fill_page("<!-- results: a.json mine din -->\n<!-- end -->", results)
