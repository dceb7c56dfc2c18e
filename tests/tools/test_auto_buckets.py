"""`recreplay capture --buckets auto`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import InputError
from recreplay.tools.bucket_choice import read_sizes

Invoke = Callable[..., Result]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.npy"
    np.save(path, np.repeat([3, 10, 11, 12], [50, 20, 20, 10]))
    return path


def test_modelled_costs(
    model_file: Path, trace: Path, tmp_path: Path, report: Callable[..., Any]
) -> None:
    out = tmp_path / "auto.rr"
    auto = ("--buckets", "auto", "--sizes", trace, "-k", "2", "--compiler", "eager")
    found = report("capture", f"{model_file}:build", "--out", out, *auto)
    choice = found["bucket_choice"]
    assert choice["sizes"] == {"requests": 100, "smallest": 3, "mean": 6.9, "largest": 12}
    assert choice["costs"].startswith("modelled")
    assert choice["best"]["buckets"] == [3, 12]  # a call is dear against so few rows
    assert [b.size for b in open_artifact(out).manifest.buckets] == [3, 12]
    assert choice["best"]["padding"] == pytest.approx(60 / 750)
    assert all(o["us"] >= choice["best"]["us"] for o in choice["others"].values())
    assert set(choice["others"]) == {
        "powers of two, top 2",
        "powers of two",
        "2 multiples of 8",
        "multiples of 8",
    }


def test_measured_costs_are_shown(
    captured: tuple[Path, Any], model_file: Path, tmp_path: Path, invoke: Invoke, trace: Path
) -> None:
    auto = ("--buckets", "auto", "--sizes", trace, "--costs", captured[0], "-k", "2")
    result = invoke(
        "capture",
        f"{model_file}:build",
        "--out",
        tmp_path / "auto.rr",
        "--compiler",
        "eager",
        *auto,
    )
    assert result.exit_code == 0, result.stderr
    assert "Buckets for 100 requests of 3 to 12 rows, 6.9 on average" in result.stdout
    for words in ("powers of two", "2 multiples of 8", "padding", "Costs measured with"):
        assert words in result.stdout


def test_options_that_do_not_fit(
    model_file: Path, tmp_path: Path, invoke: Invoke, trace: Path
) -> None:
    command = ("capture", f"{model_file}:build", "--out", tmp_path / "a.rr")
    for options, message in (
        (("--buckets", "auto"), "--buckets auto needs --sizes"),
        (("--sizes", trace), "--sizes and --costs go with --buckets auto"),
        (("--buckets", "auto", "--sizes", trace, "-k", "0"), "-k 0: a bucket list holds 1"),
        (("--buckets", "auto", "--sizes", "normal"), "no file at normal; expected a .npy file"),
    ):
        result = invoke(*command, *options)
        assert result.exit_code == 1
        assert message in result.stderr


def test_what_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.npy"
    for content, message in (
        (np.array([1.5, 2.0]), "expected an array of whole numbers, .*, got 2 numbers of float64"),
        (np.array([], dtype=np.int64), "expected an array of whole .*, got 0 numbers of int64"),
        (np.array([0, 5]), "has sizes of 0 to 5 rows; expected 1 to 16384"),
        (np.array([1, 20_000]), "has sizes of 1 to 20000 rows"),
    ):
        np.save(path, content)
        with pytest.raises(InputError, match=message):
            read_sizes(str(path))
    path.write_text("1, 2, 3")
    with pytest.raises(InputError, match=r"is not an .npy file"):
        read_sizes(str(path))
    assert sum(read_sizes("kairos").values()) == 100_000
