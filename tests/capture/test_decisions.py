"""Answers that hang on a rounding: which of two items that score the same comes first."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from recreplay.capture.decisions import ROUNDING, decided
from recreplay.capture.eager_model import run_eager
from recreplay.capture.ingest import ingest
from recreplay.capture.writer import seal
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import MANIFEST, SEAL, SELFTEST, open_artifact
from recreplay.runtime.errors import ParityError, UnsupportedModelError

Capture = Callable[..., Path]
UNITS, PAIRS, BEST = 400, 200, 40


class Retrieval(nn.Module):
    """The best of items of which some come in pairs, which score the same but for a rounding.
    Capture makes one layer of the two, which rounds otherwise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items, self.norm = nn.Linear(16, UNITS), nn.BatchNorm1d(UNITS)
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        with torch.no_grad():
            for values in (
                *(self.items.weight, self.items.bias, self.norm.weight, self.norm.bias),
                *(self.norm.running_mean, self.norm.running_var),
            ):
                assert isinstance(values, Tensor)
                values[1:PAIRS:2] = values[:PAIRS:2]
            self.items.weight[1:PAIRS:2] *= 1 + 3e-7 * torch.randn(PAIRS // 2, 16)

    def forward(self, user: Tensor) -> dict[str, Tensor]:
        score, item = self.norm(self.items(user)).topk(BEST)
        return {"score": score, "item": item, "good": score > 1.0}


@pytest.fixture
def retrieval(captured: Capture) -> tuple[nn.Module, Path]:
    model = Retrieval().eval()
    return model, captured(model, {"user": torch.randn(8, 16)}, buckets=[4, 32], compiler="eager")


def test_what_is_not_compared_is_told(captured: Capture) -> None:
    told: list[str] = []
    captured(Retrieval().eval(), {"user": torch.randn(8, 16)}, buckets=[4], progress=told.append)
    (line,) = [line for line in told if "rounding" in line]
    assert re.match(r"bucket 4: \d+ of 160 values of output 'item' hang on a rounding", line)


def test_items_that_score_the_same_may_change_places(retrieval: tuple[nn.Module, Path]) -> None:
    model, path = retrieval
    user = torch.randn(32, 16)
    with Runtime.load(path) as runtime, torch.no_grad():
        got, want = runtime.run({"user": user}), model(user)
        score = model.norm(model.items(user))  # type: ignore[operator]
    assert (got["item"] != want["item"].numpy()).any()
    np.testing.assert_allclose(got["score"], want["score"].numpy(), rtol=1e-5, atol=1e-5)
    picked = score.gather(1, torch.from_numpy(got["item"])).numpy()
    np.testing.assert_allclose(picked, want["score"].numpy(), rtol=1e-5, atol=1e-5)


def test_the_rest_is_compared_when_an_artifact_is_loaded(
    retrieval: tuple[nn.Module, Path],
) -> None:
    manifest = open_artifact(retrieval[1]).manifest
    path = retrieval[1] / SELFTEST
    stored = load_file(path)
    firm = stored["32/decided/item"]
    assert firm.any()
    assert not firm.all()
    assert "32/decided/score" not in stored
    for place, fails in ((~firm, False), (firm, True)):
        changed = stored | {"32/out/item": stored["32/out/item"].copy()}
        changed["32/out/item"][tuple(np.argwhere(place)[0])] += 1
        save_file(changed, path)
        for name in (MANIFEST, SEAL):
            (retrieval[1] / name).unlink()
        seal(retrieval[1], manifest)
        if fails:
            with pytest.raises(ParityError, match="self-test of bucket 32 failed: output 'item'"):
                Runtime.load(retrieval[1])
        else:
            Runtime.load(retrieval[1]).close()


class Counting(nn.Module):
    """What is captured of it gives the item before the one that it gives itself."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (x * 1000).argmax(1) + 20_000 + min(self.calls, 3)


def test_another_item_is_refused_however_near_its_number(captured: Capture) -> None:
    message = r"^bucket 2, 1 rows: output 'output' differs from the eager model by [12] "
    with pytest.raises(ParityError, match=message):
        captured(Counting().eval(), {"x": torch.rand(4, 5)}, buckets=[2], compiler="eager")


class Cases(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Rows of 8 in which all differ, the first two are the same, or but for a rounding."""
        best = (x * 3).argmax(1)
        return {"best": best, "above": (x * 3).amax(1) > 2.1, "row": x.gather(1, best[:, None])}


def test_what_is_decided_by_more_than_rounding() -> None:
    apart, same = torch.arange(8.0), torch.tensor([0.7, 0.7, *[0.0] * 6])
    near = torch.tensor([9.0, 9.0 - 1e-6, *[-5.0] * 6])
    x = torch.stack([apart, same, near])
    model = ingest(Cases().eval(), {"x": x})
    answer = run_eager(model, {"x": x}, 3)
    firm = decided(model, {"x": x}, answer, 3, 1e-5, 1e-4, 1e-5, dict.fromkeys(answer, 1.0))
    assert firm["best"].tolist() == [True, False, False]
    assert firm["above"].tolist() == [True, False, True]
    assert firm["row"].tolist() == [[True]] * 3  # as large, whichever it is


def test_a_sum_that_cancels_is_decided() -> None:
    """Its rounding is small beside its terms, and large beside itself."""

    class Cancels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 3).sum(1) - (x * 3).flip(1).sum(1)

    x = torch.rand(3, 8)
    model = ingest(Cancels().eval(), {"x": x})
    answer = run_eager(model, {"x": x}, 3)
    assert abs(answer["output"]).max() < 1e-4
    firm = decided(model, {"x": x}, answer, 3, ROUNDING, 1e-4, 1e-5, {"output": 0.0})
    assert firm["output"].all()


def test_ids_that_a_rounding_takes_beyond_their_table_say_nothing() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            values: Tensor = self.table((x * 10).long())
            return values.argmax(1)

    x = torch.tensor([0.05, torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))])
    model = ingest(Places().eval(), {"x": x})
    answer = run_eager(model, {"x": x}, 2)
    firm = decided(model, {"x": x}, answer, 2, 1e-3, 1e-4, 1e-5, {"output": 1.0})
    assert firm["output"].shape == (2,)


class Sheet(nn.Module):
    """Takes ids, flags and numbers out of one matrix of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 8)
        self.bins = nn.Buffer(torch.tensor([0.1, 0.2, 0.4]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        columns = x[:, [0, 2, 1]]
        known = (columns[:, :2] > 0).float()
        ids = torch.max(columns[:, :2] * known, torch.zeros(()))
        count = known.sum(1)
        return {
            "looked up": self.table(ids.long()).sum(1),
            "last": self.table((count - 1).clamp(min=0).long()),
            "both": torch.where((known == 1).all(1), 5.0, 0.0),
            "bin": (columns[:, 2:] >= self.bins).sum(1),
        }


def test_what_no_operator_rounds_is_decided() -> None:
    """Ids that lie among floats were off by a rounding, and with them all that was looked up."""
    x = torch.stack([torch.randint(0, 300, (9,)), torch.full((9,), 0.2), torch.arange(9)], 1)
    model = ingest(Sheet().eval(), {"x": x})
    answer = run_eager(model, {"x": x}, 9)
    firm = decided(model, {"x": x}, answer, 9, ROUNDING, 1e-4, 1e-5, dict.fromkeys(answer, 1.0))
    assert all(mask.all() for mask in firm.values())


def test_rows_that_attend_to_each_other_are_refused_though_ids_lie_among_floats(
    captured: Capture,
) -> None:
    class Saint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.sheet, self.attend = Sheet(), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.sheet(x)["looked up"].unsqueeze(0)
            mixed: Tensor = self.attend(rows, rows, rows)[0]
            return mixed.squeeze(0)

    x = torch.stack([torch.randint(0, 300, (9,)), torch.rand(9), torch.arange(9)], 1)
    with pytest.raises(UnsupportedModelError, match="'output' of a row depends on other rows"):
        captured(Saint().eval(), {"x": x}, buckets=[4], compiler="eager")
