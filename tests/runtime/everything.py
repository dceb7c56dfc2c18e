"""A model with inputs of all kinds, and requests for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recreplay.capture import Jagged, capture
from recreplay.capture.rewrites import narrow_ids

Arrays = dict[str, Any]
SIZE, USERS, CAPACITY = 6, 3, 4


class Everything(nn.Module):
    """Inputs of all kinds; ids that are staged as int32 and some that come so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Parameter(torch.randn(30, 4))
        self.top = nn.Linear(6 * 4 + 2, 2)

    def forward(
        self,
        item: Tensor,
        dense: Tensor,
        user: Tensor,
        clicks: Tensor,
        weights: Tensor,
        offsets: Tensor,
        tags: Tensor,
        lengths: Tensor,
        seen: Tensor,
        starts: Tensor,
    ) -> Tensor:
        bag, table = F.embedding_bag, self.table
        weighed = bag(
            clicks,
            table,
            offsets,
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )
        parts = [
            bag(item, table, mode="sum"),
            weighed,
            bag(clicks, table, offsets[:-1], mode="mean"),
            bag(tags, table, lengths.cumsum(0) - lengths, mode="sum"),
            bag(seen, table, starts, mode="sum") + F.embedding(user, table),
            F.embedding(item[:, 1], table),
            dense,
        ]
        return self.top(torch.cat(parts, 1))


def request(n: int, m: int, counts: tuple[Any, Any, Any], wide: bool, seed: int) -> Arrays:
    """Of `n` candidates of `m` users: how many clicks and tags each candidate has, and how many
    items each user has seen."""
    draw = np.random.default_rng(seed)
    clicks, tags, seen = (np.asarray(c, np.int64) for c in counts)
    whole = np.int64 if wide else np.int32
    ends = np.concatenate([[0], clicks.cumsum()])
    return {
        "item": draw.integers(0, 30, (n, 3)),
        "dense": draw.standard_normal((n, 2)).astype(np.float32),
        "user": draw.integers(0, 30, m),
        "user_index": draw.integers(0, m, n),
        "clicks": draw.integers(0, 30, clicks.sum()),
        "weights": draw.standard_normal(clicks.sum()).astype(np.float32),
        "offsets": ends.astype(whole),
        "tags": draw.integers(0, 30, tags.sum()).astype(np.int32),
        "lengths": tags.astype(whole),
        "seen": draw.integers(0, 30, seen.sum()),
        "starts": (seen.cumsum() - seen).astype(np.int32 if wide else np.int64),
    }


def captured(out: Path, dtype: str) -> Path:
    """`dtype`: what int64 ids are staged as."""
    rng = np.random.default_rng(0)
    example: Arrays = {
        "item": rng.integers(0, 30, (4, 3)),
        "dense": rng.standard_normal((4, 2)).astype(np.float32),
        "user": rng.integers(0, 30, 4),
        "clicks": rng.integers(0, 30, 8),
        "weights": rng.standard_normal(8).astype(np.float32),
        "offsets": np.array([0, 3, 3, 5, 8]),
        "tags": rng.integers(0, 30, 7).astype(np.int32),
        "lengths": np.array([2, 1, 0, 4], np.int32),
        "seen": rng.integers(0, 30, 6),
        "starts": np.array([0, 2, 2, 5]),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(narrow_ids._LEAST, "cpu", 1 if dtype == "int32" else 1000)
        manifest = capture(
            Everything().eval(),
            {k: torch.from_numpy(v) for k, v in example.items()},
            out=out,
            buckets=[2, SIZE],
            compiler="eager",
            user_inputs=["user", "seen", "starts"],
            users=USERS,
            jagged=[
                Jagged("clicks", offsets="offsets", capacity=CAPACITY),
                Jagged("weights", offsets="offsets", capacity=CAPACITY),
                Jagged("tags", lengths="lengths", capacity=CAPACITY),
                Jagged("seen", offsets="starts", capacity=CAPACITY),
            ],
        )
    slots = {s.name: s.dtype for s in manifest.buckets[-1].inputs}
    assert {slots[k] for k in ("item", "clicks", "user", "seen")} == {dtype}
    return out
