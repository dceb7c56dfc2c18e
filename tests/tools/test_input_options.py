"""`capture --jagged --capacity --user-inputs --users`, and what `inspect` and `run` make of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recreplay.capture import Jagged
from recreplay.runtime.errors import CaptureError
from recreplay.tools.input_options import parse_jagged

MODEL = """
import torch
from torch import nn


class Feed(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(20, 4), nn.Embedding(30, 4)
        self.clicks = nn.EmbeddingBag(25, 4, mode="sum", include_last_offset=True)

    def forward(self, user, item, clicks, offsets):
        return self.user(user) * self.item(item) + self.clicks(clicks, offsets)

    def example_inputs(self, batch):
        return {
            "user": torch.arange(batch),
            "item": torch.arange(batch),
            "clicks": torch.arange(2 * batch),
            "offsets": torch.arange(0, 2 * batch + 1, 2),
        }


def build():
    return Feed().eval()
"""
SETTINGS = ("--buckets", "1,4", "--compiler", "eager", "--jagged", "clicks:offsets")


@pytest.fixture
def feed_file(tmp_path: Path) -> Path:
    path = tmp_path / "feed.py"
    path.write_text(MODEL)
    return path


def test_from_options_to_scores(
    feed_file: Path, tmp_path: Path, report: Callable[..., Any], invoke: Callable[..., Any]
) -> None:
    out = tmp_path / "feed.rr"
    shared = ("--user-inputs", "user", "--users", 2, "--capacity", "clicks=3")
    summary = report("capture", f"{feed_file}:build", "--out", out, *SETTINGS, *shared)
    assert report("inspect", out) == summary
    assert summary["users"] == 2
    shown = {i["name"]: (i["shape"], i["kind"], i["capacity"]) for i in summary["inputs"]}
    assert shown == {
        "user": ("int64[users]", "rows", 0),
        "item": ("int64[n]", "rows", 0),
        "clicks": ("int64[N]", "values", 3),
        "offsets": ("int64[n + 1]", "offsets", 0),
        "user_index": ("int64[n]", "index", 0),
    }
    text = invoke("inspect", out).stdout
    assert re.search(r"user +1 +int64\[users\] +of at most 2 users +20", text)
    assert re.search(r"clicks +1 +int64\[N\] +divided by offsets, room for 3 a row +25", text)
    request, scores = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(
        request,
        user=np.array([3, 4]),
        user_index=np.array([1]),
        item=np.array([5]),
        clicks=np.arange(9),
        offsets=np.array([0, 9]),
    )
    ran = report("run", out, "--inputs", request, "--out", scores)
    assert ran["notices"] == [
        "3 rows of padding were replayed",
        "1 replays ran in a larger bucket for room for their jagged values",
    ]
    assert np.load(scores)["output"].shape == (1, 4)


def test_capacity_from_traffic(tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.npy"
    np.save(lengths, np.array([0, 1, 9, 2]))
    assert parse_jagged(["a:o", "b:lengths=l"], [f"a={lengths}", "b=7"]) == [
        Jagged("a", offsets="o", capacity=6),
        Jagged("b", lengths="l", capacity=7),
    ]
    np.save(lengths, np.array([0.5]))
    with pytest.raises(CaptureError, match=r"holds float64\[1\]; expected integers of 0 or more"):
        parse_jagged(["a:o"], [f"a={lengths}"])
    with pytest.raises(CaptureError, match=r"absent.npy is not a .npy file of lengths"):
        parse_jagged(["a:o"], ["a=absent.npy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jagged", "clicks"], "--jagged 'clicks': expected VALUES:OFFSETS or VALUES:lengths="),
        (["--jagged", "clicks:size=x"], "--jagged 'clicks:size=x': expected VALUES:OFFSETS"),
        (["--capacity", "clicks=x"], "--capacity 'clicks=x': expected VALUES=N"),
        (["--capacity", "item=3"], "--capacity for 'item', which no --jagged declares"),
        (["--capacity", "clicks=0"], "capacity of jagged input 'clicks' is 0"),
        (["--user-inputs", "usr"], "the model has no input 'usr'"),
        (["--users", "2"], "users=2 needs user_inputs"),
    ],
)
def test_wrong_options(
    options: list[str],
    message: str,
    feed_file: Path,
    tmp_path: Path,
    invoke: Callable[..., Any],
) -> None:
    out = tmp_path / "x.rr"
    result = invoke("capture", f"{feed_file}:build", "--out", out, *SETTINGS, *options)
    assert result.exit_code == 1
    assert re.search(re.escape(message), " ".join(result.stderr.split()))
    assert not out.exists()
