"""A row's scores are of that row alone, or the model is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import Jagged
from recreplay.runtime import Runtime
from recreplay.runtime.errors import ParityError, UnsupportedModelError

Capture = Callable[..., Path]


class Rows(nn.Module):
    """What `change` makes of one score a row."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, 1)
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.layer(x))


EXAMPLE = {"x": torch.randn(6, 4, generator=torch.Generator().manual_seed(1))}
MIXING = {
    "the largest": lambda y: y - y.max(0).values,
    "the first": lambda y: y * y[:1],
    "softmax": lambda y: y.softmax(0),
    "the mean": lambda y: y - y.mean(0, keepdim=True),
    "the order": lambda y: y + torch.arange(y.shape[0])[:, None],
    "the row before": lambda y: y.cumsum(0),
    "how many": lambda y: y / y.shape[0],
    "a little": lambda y: y + 1e-2 * y.mean(0),
    "only where infinite": lambda y: torch.where(y < y.max(0).values, -torch.inf, torch.inf),
}


@pytest.mark.parametrize("how", MIXING)
@pytest.mark.parametrize("buckets", [[1], [1, 4]])
def test_what_mixes_rows_is_refused(captured: Capture, how: str, buckets: list[int]) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"^output 'output' of a row depends on other rows of the requ"
    ):
        captured(Rows(MIXING[how]), EXAMPLE, buckets=buckets)


OWN = {
    "sign": torch.sign,  # rounding may turn it
    "rounded": lambda y: (y * 1e6).round(),
    "top": lambda y: torch.cat([y, -y, y * 0.5], 1).topk(2, 1).indices,
    "not a number": lambda y: torch.where(y > 0, y, torch.nan),
    "nothing": lambda y: torch.where(y > 1e9, y, torch.inf),
    "no column": lambda y: (y, y[:, :0]),
}


@pytest.mark.parametrize("how", OWN)
def test_what_does_not_is_captured(captured: Capture, how: str) -> None:
    model = Rows(OWN[how])
    with Runtime.load(captured(model, EXAMPLE)) as runtime, torch.inference_mode():
        want = model(EXAMPLE["x"])
        got = list(runtime.run({"x": EXAMPLE["x"]}).values())
        for a, b in zip(got, want if isinstance(want, tuple) else [want], strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-3, atol=1e-5)


def test_what_only_shows_in_more_rows_is_told_apart_from_steps(captured: Capture) -> None:
    with pytest.raises(
        ParityError,
        match=r"^bucket 8, 1 rows: output 'output' differs from the eager model by 1 .* Capture "
        r"with compiler='eager' and rewrites=\(\): where that is right, one of the two is the cause"
        r"; else the model scores a row otherwise in another number of rows, and each row has to",
    ):
        captured(Rows(lambda y: y + y.shape[0] // 6), EXAMPLE, buckets=[8])


class Shared(nn.Module):
    """The user of the first row is everybody's, as services write it."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(9, 4), nn.Embedding(9, 4)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.users(user[:1]) * self.items(item)).sum(1)


def test_what_all_rows_share_is_declared(captured: Capture) -> None:
    model = Shared()
    example = {"user": torch.tensor([3, 3, 3]), "item": torch.tensor([1, 2, 8])}
    different = {**example, "user": torch.tensor([3, 4, 5])}
    with pytest.raises(UnsupportedModelError, match=r"can be declared \(user_inputs\)$"):
        captured(model, different)
    path = captured(model, example, user_inputs=["user"])
    with Runtime.load(path) as runtime, torch.inference_mode():
        got = runtime.run({"user": [3], "item": [1, 2, 8]})["output"]
        np.testing.assert_allclose(got, model(**example).numpy(), rtol=1e-5)


def test_rows_of_the_example_may_be_alike(captured: Capture) -> None:
    zeros = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(UnsupportedModelError, match=r"^output 'output' of a row depends on other"):
        captured(Shared(), {"user": zeros, "item": zeros})


class Pooled(nn.Module):
    """A history of any length, for each row or for each user."""

    def __init__(self, mixing: bool) -> None:
        super().__init__()
        self.table, self.mixing = nn.EmbeddingBag(20, 4, mode="sum"), mixing

    def forward(self, values: Tensor, offsets: Tensor, x: Tensor) -> Tensor:
        bags = self.table(values, offsets[:-1])
        return (bags[:1] if self.mixing else bags) * x


@pytest.mark.parametrize("users", [0, 1, 3])
def test_jagged_rows_are_cut_too(captured: Capture, users: int) -> None:
    example = {
        "values": torch.tensor([1, 2, 19, 4, 7, 3]),
        "offsets": torch.tensor([0, 1, 3, 6]),
        "x": torch.randn(3, 4),
    }
    told: dict[str, Any] = {"jagged": [Jagged("values", offsets="offsets")]}
    if users:
        told |= {"user_inputs": ["values", "offsets"], "users": users}
    captured(Pooled(False), example, **told)
    if users != 1:  # else the first row's history is everybody's
        with pytest.raises(UnsupportedModelError, match=r"^output 'output' of a row depends on ot"):
            captured(Pooled(True), example, **told)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda y: torch.cat([y.expand(-1, 4)[:, None].squeeze(), y], 1), r"fails \(\w+Error: "),
        (lambda y: y.squeeze(), r"gives output 'output' of shape \(\) "),
    ],
)
def test_a_model_that_takes_no_row_alone(
    captured: Capture, make: Callable[[Tensor], Tensor], said: str
) -> None:
    """By a `squeeze()`, as models of DeepCTR-Torch, torch-rechub and RecBole have it."""
    model, notes = Rows(make), list[str]()
    path = captured(model, EXAMPLE, buckets=[1, 4], progress=notes.append)
    assert any(re.match(f"the model itself {said}.*for a request of 1 row", n) for n in notes)
    with Runtime.load(path) as runtime:
        for rows in (1, 3):
            several = {name: tensor[:4] for name, tensor in EXAMPLE.items()}
            got = runtime.run({name: tensor[:rows] for name, tensor in several.items()})["output"]
            np.testing.assert_allclose(got, model(**several)[:rows].detach().numpy(), rtol=1e-6)


def test_shapes_that_only_look_like_rows(captured: Capture) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"^output 'output' has shape \(5, 5\) for 5 rows; expected \(5"
    ):
        captured(Rows(lambda y: y @ y.T), EXAMPLE)
    constant = torch.ones(6)
    with pytest.raises(
        UnsupportedModelError, match=r"^output 'output_1' has shape \(6,\) for 5 rows; expected"
    ):
        captured(Rows(lambda y: (y, constant * 2)), EXAMPLE)


def test_outputs_have_names_of_their_own(captured: Capture) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"^outputs are named \[1, '1'\], of which seve"
    ):
        captured(Rows(lambda y: {1: y, "1": -y}), EXAMPLE)
