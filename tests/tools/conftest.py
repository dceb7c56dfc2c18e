"""A user's model file, an artifact of it, and a way to run commands as a shell does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from recreplay.capture import Jagged, capture
from recreplay.tools.cli import app

MODEL = '''
"""A ranking model as a user would write it. It talks, which must not spoil JSON on stdout."""
import torch
from torch import nn

print("the model file was imported")


class Ranker(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.rows = rows
        self.a = nn.EmbeddingBag(rows, width, mode="sum")
        self.b = nn.EmbeddingBag(rows, width, mode="sum")
        self.top = nn.Linear(2 * width + 3, 1)

    def forward(self, dense, ids):
        x = torch.cat([dense, self.a(ids[0]), self.b(ids[1])], dim=1)
        return torch.sigmoid(self.top(x))

    def example_inputs(self, batch):
        print("example inputs were made")
        ids = {f"ids_{i}": torch.randint(0, self.rows, (batch, 4)) for i in range(2)}
        return {"dense": torch.randn(batch, 3), **ids}


def build(rows: int = 50, width: int = 8):
    torch.manual_seed(0)
    return Ranker(rows, width).eval()


def nothing():
    return 42


def picky(rows: int = 3):
    raise ValueError("rows must be even")


def training():
    return Ranker(4, 2)


class Hashed(Ranker):
    """Its ids are computed, so no check of requests can cover them."""

    def forward(self, dense, ids):
        return super().forward(dense, [((i * 7 + 1) % self.rows).abs() for i in ids])


def hashed():
    return Hashed(50, 8).eval()


value = 3
'''


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "my_model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="session")
def invoke() -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return run


@pytest.fixture(scope="session")
def report(invoke: Callable[..., Result]) -> Callable[..., Any]:
    """Run a command with --json and parse all of its stdout."""

    def run(*arguments: object) -> Any:
        result = invoke(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="session")
def captured(
    model_file: Path, report: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """An artifact with buckets 2 and 8, and what capture said about it. Do not write to it."""
    out = tmp_path_factory.mktemp("artifact") / "my.rr"
    summary = report(
        "capture", f"{model_file}:build", "--out", out, "--buckets", "8,2", "--compiler", "eager"
    )
    return out, summary


@pytest.fixture
def artifact(captured: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the artifact, to be damaged."""
    return Path(shutil.copytree(captured[0], tmp_path / "copy.rr"))


@pytest.fixture
def request_file(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: int = 5, **changes: Any) -> Path:
        rng = np.random.default_rng(rows)
        arrays: dict[str, Any] = {
            "dense": rng.standard_normal((rows, 3)).astype(np.float32),
            "ids_0": rng.integers(0, 50, (rows, 4)),
            "ids_1": rng.integers(0, 50, (rows, 4)),
        }
        arrays.update(changes)
        path = tmp_path / "in.npz"
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        return path

    return write


class Feed(nn.Module):
    """A user with a history, and candidates with tags."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.user, self.item = nn.Embedding(40, 6), nn.Embedding(60, 6)
        self.tag = nn.EmbeddingBag(20, 6, mode="mean", include_last_offset=True)
        self.seen = nn.EmbeddingBag(60, 6, mode="sum", include_last_offset=True)

    def forward(
        self,
        user: Tensor,
        seen: Tensor,
        seen_offsets: Tensor,
        item: Tensor,
        tags: Tensor,
        tag_offsets: Tensor,
    ) -> Tensor:
        who = self.user(user) + self.seen(seen, seen_offsets)
        return ((self.item(item) + self.tag(tags, tag_offsets)) * who).sum(1)


@pytest.fixture(scope="session")
def feeds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """`Feed` captured for one user a request and for four, by the eager compiler in buckets 4 and
    16. Not to be written to."""
    example = {
        "user": torch.tensor([1, 2, 3]),
        "seen": torch.arange(12),
        "seen_offsets": torch.tensor([0, 4, 4, 12]),
        "item": torch.tensor([4, 5, 6]),
        "tags": torch.arange(7),
        "tag_offsets": torch.tensor([0, 3, 5, 7]),
    }
    found = {}
    for users in (1, 4):
        found[users] = tmp_path_factory.mktemp("feeds") / f"feed{users}.rr"
        capture(
            Feed().eval(),
            example,
            out=found[users],
            buckets=[4, 16],
            compiler="eager",
            user_inputs=["user", "seen", "seen_offsets"],
            users=users,
            jagged=[
                Jagged("seen", offsets="seen_offsets"),
                Jagged("tags", offsets="tag_offsets"),
            ],
        )
    return found
