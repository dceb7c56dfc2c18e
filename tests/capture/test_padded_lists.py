"""Lists of a number of their own per row, padded to one length for what works by position."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recreplay.capture import Jagged, capture
from recreplay.runtime import Runtime

aten = torch.ops.aten
LONGEST, ROOM = 3, 16  # ROOM: values that a bucket of four rows has places for


class Lists(nn.Module):
    """The first items of a history, by position, and what all of them are in the mean. Layers read
    each item, and items again what became of their places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 4)
        self.norm, self.inner, self.mixed = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(4, 4)
        self.out = nn.Linear(4 * LONGEST + 4, 2)

    def forward(self, ids: Tensor, ends: Tensor, x: Tensor) -> Tensor:
        read, gate = self.inner(self.norm(self.table(ids))).split(4, 1)
        read = read * torch.cat([gate[:, :2], gate[:, 2:]], 1).softmax(1)
        read = read.view(-1, 2, 2).transpose(1, 2).flatten(1) + read.sum(1, keepdim=True)
        places = aten._jagged_to_padded_dense_forward(read, [ends], [ROOM], 0.0)
        mixed = places.cumsum(1) @ self.mixed.weight
        rows = read + aten._padded_dense_to_jagged_forward(mixed, [ends], ids.shape[0])
        places = aten._jagged_to_padded_dense_forward(rows, [ends], [LONGEST], -1.0)
        mean = nn.functional.embedding_bag(
            ids, self.table.weight, ends, mode="mean", include_last_offset=True
        )
        return self.out(torch.cat([places.flatten(1), mean], 1)) + x


def asked(lengths: list[int]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(sum(lengths))
    return {
        "ids": torch.randint(0, 50, (sum(lengths),), generator=random),
        "ends": torch.tensor([0, *lengths]).cumsum(0),
        "x": torch.randn(len(lengths), 2, generator=random),
    }


@pytest.fixture(
    scope="module", params=["eager", pytest.param("inductor", marks=pytest.mark.inductor)]
)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Lists, Runtime]]:
    model, out = Lists().eval(), tmp_path_factory.mktemp("lists") / "m.rr"
    told = [Jagged("ids", offsets="ends", capacity=4)]
    example = asked([2, 0, 3, 5])
    buckets = [1, 4] if request.param == "eager" else [4]
    capture(model, example, out=out, buckets=buckets, jagged=told, compiler=request.param)
    with Runtime.load(out) as runtime:
        yield model, runtime


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_random_lists_equal_eager(served: tuple[Lists, Runtime], lengths: list[int]) -> None:
    model, runtime = served
    arrays = asked(lengths)
    got = runtime.run(arrays)["output"]
    with torch.no_grad():
        np.testing.assert_allclose(got, model(**arrays).numpy(), rtol=1e-4, atol=1e-5)
