"""`recreplay bench` of models with jagged inputs and a user side: all answer the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from recreplay.tools.bench.suites import find_suite

Invoke = Callable[..., Result]
TINY = ("--runs", "4", "--compiler", "eager", "--buckets", "1,4", "--batches", "1,4")
DECLARED = (
    *("--jagged", "seen:seen_offsets", "--jagged", "tags:lengths=tag_counts"),
    *("--capacity", "tags=5"),
)
SHARED = ("--user-inputs", "user,seen,seen_offsets", "--users", "2")
MODEL = """
import torch
import torch.nn.functional as F
from torch import nn

class Feed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.user, self.seen = nn.Embedding(9, 4), nn.Embedding(20, 4)
        self.tags = nn.Embedding(30, 4)
        self.top = nn.Linear(14, 1)

    def forward(self, user, seen, seen_offsets, dense, tags, tag_counts):
        bag, starts = F.embedding_bag, tag_counts.cumsum(0) - tag_counts
        seen = bag(seen, self.seen.weight, seen_offsets, mode="mean", include_last_offset=True)
        tags = bag(tags, self.tags.weight, starts, mode="sum")
        return self.top(torch.cat([self.user(user), seen, tags, dense], 1))

def build():
    return Feed().eval()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The model, and a file of example inputs."""
    folder = tmp_path_factory.mktemp("feed")
    (folder / "feed.py").write_text(MODEL)
    draw = np.random.default_rng(0)
    example = {
        "user": draw.integers(0, 9, 4),
        "seen": draw.integers(0, 20, 10),
        "seen_offsets": np.array([0, 4, 4, 7, 10]),
        "dense": draw.standard_normal((4, 2)).astype(np.float32),
        "tags": draw.integers(0, 30, 7),
        "tag_counts": np.array([2, 0, 4, 1]),
    }
    np.savez(folder / "example.npz", **example)
    return f"{folder / 'feed.py'}:build", folder / "example.npz"


@pytest.mark.parametrize(
    ("users", "peers"),
    [((), ()), (SHARED, ()), (SHARED, ("--peers", "eager"))],
)
def test_a_model_of_ones_own(
    made: tuple[str, Path], invoke: Invoke, users: tuple[str, ...], peers: tuple[str, ...]
) -> None:
    target, example = made
    given = (*TINY, *DECLARED, *users, *peers, "--inputs", example, "--json")
    result = invoke("bench", target, *given)
    assert result.exit_code == 0, result.stderr
    (model,) = json.loads(result.stdout)["results"]
    assert [b["batch"] for b in model["batches"]] == [1, 4]
    for batch in model["batches"]:
        if not peers:
            assert batch["max_abs_error"] < 1e-5
            continue
        assert [c["name"] for c in batch["contenders"]] == ["eager", "ours"]
        assert all(c["max_abs_error"] < 1e-5 for c in batch["contenders"])


def test_the_floor_of_a_user_side_has_it_once(made: tuple[str, Path], invoke: Invoke) -> None:
    found = []
    for users in ((), SHARED[:2]):
        given = (*TINY, *DECLARED, *users, "--peers", "eager", "--inputs", made[1], "--json")
        result = invoke("bench", made[0], *given)
        assert result.exit_code == 0, result.stderr
        (model,) = json.loads(result.stdout)["results"]
        found.append([batch["floor"]["bytes"] for batch in model["batches"]])
    (one, four), (shared_one, shared_four) = found
    assert shared_one == one
    assert shared_four < four


def test_onnx_runtime_takes_every_row_with_its_user(
    made: tuple[str, Path], invoke: Invoke, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    target, example = made
    declared = (*DECLARED, *SHARED, "--inputs", example)
    result = invoke("bench", target, *TINY, *declared, "--peers", "onnxruntime", "--json")
    assert result.exit_code == 0, result.stderr
    (model,) = json.loads(result.stdout)["results"]
    assert model["absent"] == {}
    names = [c["name"] for c in model["batches"][1]["contenders"]]
    assert names == ["eager", "onnxruntime", "ours"]


def test_the_suite_has_the_user_by_row_and_once(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recreplay.models.two_tower import TwoTower
    from recreplay.tools import capture_model

    plain, once = find_suite("jagged").benchmarks
    assert (plain.name, once.name) == ("two_tower", "two_tower_user_side")
    assert (plain.user_side, once.user_side) == (False, True)
    capture, said = capture_model.capture_target, []

    def noted(*arguments: Any, **settings: Any) -> Any:
        said.append(settings["user_inputs"])
        return capture(*arguments, **settings)

    monkeypatch.setattr(capture_model, "capture_target", noted)
    tiny = (*TINY, "--arg", "rows_scale=0.0001", "--models", once.name, "--json")
    result = invoke("bench", "--suite", "jagged", *tiny)
    assert result.exit_code == 0, result.stderr
    (measured,) = json.loads(result.stdout)["results"]
    assert measured["name"] == once.name
    assert said == [TwoTower.user_inputs]


@pytest.mark.parametrize("given", [("--suite", "core"), ("--suite", "overhead"), ()])
def test_only_models_of_ones_own_are_declared(invoke: Invoke, given: Any) -> None:
    result = invoke("bench", *given, "--jagged", "a:b")
    assert result.exit_code == 1
    assert "--jagged" in result.stderr
