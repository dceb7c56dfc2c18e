"""Requests that smaller buckets answer sooner: the rule against all ways, and the runtime at it."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from recreplay.capture import capture
from recreplay.runtime import Runtime
from recreplay.runtime.errors import IdRangeError
from recreplay.runtime.portions import best_portion
from recreplay.tools.cli import app

COSTS = st.dictionaries(st.integers(1, 64), st.floats(1, 1e4), min_size=1, max_size=6)


def took(costs: dict[int, float], rows: int, step: int) -> float:
    """Replays of `step` rows one after the other, the last in the bucket that holds it."""
    parts = [min(step, rows - at) for at in range(0, rows, step)]
    each = (costs[min(size for size in costs if size >= part)] for part in parts)
    return sum(each) + 15.0 * (len(parts) - 1)


@given(COSTS, st.integers(1, 200))
def test_a_portion_is_a_bucket_and_gains_a_tenth(costs: dict[int, float], rows: int) -> None:
    usual = min((size for size in costs if size >= rows), default=max(costs))
    step = best_portion(costs, rows)
    assert step in costs
    assert step <= usual
    if step != usual:
        assert took(costs, rows, step) <= 0.9 * took(costs, rows, usual)
    others = [took(costs, rows, size) for size in costs if size < min(usual, rows)]
    if others and min(others) <= 0.9 * took(costs, rows, usual):
        assert took(costs, rows, step) == pytest.approx(min(others))


@given(st.floats(0, 1e3), st.floats(0.1, 50), st.integers(1, 256))
def test_where_rows_cost_the_same_in_all_buckets_nothing_is_parted(
    fixed: float, row: float, rows: int
) -> None:
    """Powers of two, a fixed cost and one per row: padding is what one replay has more of, and
    parts pay for theirs where padding is little."""
    costs = {2**i: fixed + row * 2**i for i in range(9)}
    if best_portion(costs, rows) < rows:
        padded = 2 ** ceil(np.log2(rows)) - rows
        assert padded * row > 15.0


def test_attention_that_leaves_the_cache() -> None:
    """DIN as one machine had it: buckets of 16 and 32 rows were the cheapest per row."""
    costs = {1: 95.0, 16: 617.0, 32: 1_260.0, 64: 3_050.0, 128: 6_450.0, 256: 14_700.0}
    assert best_portion(costs, 128) == 16
    assert best_portion(costs, 256) == 16
    assert best_portion(costs, 33) == 16  # 16, 16 and 1; not 64
    assert best_portion(costs, 32) == 32  # twice 16 gains less than a tenth
    assert best_portion(costs, 1000) == 16


@pytest.fixture
def tuned(shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`Shop` with a bucket of 8 that the tuner has seen take as long as ten of 2."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    took = {2: 100.0, 8: 1_000.0}
    monkeypatch.setattr(
        "recreplay.capture.tune.medians", lambda timed, _: {key: took[key[0]] for key in timed}
    )
    example = {k: torch.from_numpy(v) for k, v in shop.request(4).items()}
    said: list[str] = []
    out = tmp_path / "shop.rr"
    capture(
        shop, example, out=out, buckets=[2, 8], compiler="eager", tune="quick", progress=said.append
    )
    assert "bucket 8: requests of so many rows run faster in parts of 2" in said
    return out


def test_requests_are_not_cut_for_a_moment_in_which_the_machine_was_busy(
    shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    took = {1: 90.0, 2: 100.0, 8: 3_000.0}

    def medians(timed: Any, _: str) -> dict[tuple[int, int], float]:
        sizes = {size for size, _ in timed}
        return {key: 150.0 if len(sizes) > 1 else took[key[0]] for key in timed}

    monkeypatch.setattr("recreplay.capture.tune.medians", medians)
    example = {k: torch.from_numpy(v) for k, v in shop.request(4).items()}
    said: list[str] = []
    out = tmp_path / "shop.rr"
    options = {"buckets": [1, 2, 8], "compiler": "eager", "tune": "quick", "progress": said.append}
    capture(shop, example, out=out, **options)
    assert "tuning: all buckets in turns, before requests are cut by what they take" in said
    assert not any("in parts of" in line for line in said)
    with Runtime.load(out) as runtime:
        kept = {c.bucket: c.us for c in runtime.manifest.candidates if c.chosen}
        assert kept == {1: 90.0, 2: 100.0, 8: 150.0}
        runtime.run(shop.request(8))
        assert runtime.stats()["replays"] == {8: 1}


def test_requests_run_in_parts_and_say_so(tuned: Path, shop: Any) -> None:
    with Runtime.load(tuned) as runtime:
        for rows in (1, 2, 7, 8, 19):
            request = shop.request(rows, seed=rows)
            found, wanted = runtime.run(request), shop.answer(request)
            for name, value in wanted.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
        stats = runtime.stats()
        assert stats["replays"] == {2: 1 + 1 + 4 + 4 + 10}
        assert stats["portioned_requests"] == 2  # 7 and 8
        assert stats["split_requests"] == 1  # 19
        assert stats["padded_rows"] == 1 + 1 + 1
        wrong = shop.request(8)
        wrong["ids_0"][5, 1] = 50
        with pytest.raises(IdRangeError, match=r"^input 'ids_0', row 5, position 1: id 50 "):
            runtime.run(wrong)


def test_a_borrow_is_one_replay(tuned: Path, shop: Any) -> None:
    request = shop.request(8)
    with Runtime.load(tuned) as runtime, runtime.borrow(8) as borrowed:
        for name, value in request.items():
            borrowed.inputs[name][:] = value
        found = borrowed.run()
        np.testing.assert_allclose(found["score"], shop.answer(request)["score"], rtol=1e-4)
        assert runtime.stats()["replays"] == {8: 1}


def test_inspect_shows_them(tuned: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(tuned), "--json"])
    assert [(b["size"], b["portion"]) for b in json.loads(done.stdout)["buckets"]] == [
        (2, 2),
        (8, 2),
    ]
