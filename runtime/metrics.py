"""Counters of a runtime: what was replayed, padded, split and clamped. Nothing happens unseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Metrics:
    """Of one lane: written by whoever has the lane, read by anybody through `total`."""

    requests: int = 0
    rows: int = 0
    failed: int = 0
    split_requests: int = 0  # above the largest bucket
    portioned_requests: int = 0  # that a bucket holds, but smaller ones answer sooner
    padded_rows: int = 0
    clamped_ids: int = 0
    capacity_moves: int = 0  # replays in a larger bucket than their rows need, for their values
    capacity_splits: int = 0  # requests in more parts than their rows need
    replays: dict[int, int] = field(default_factory=dict)  # by bucket

    def count(self, size: int, n: int, clamped: int) -> None:
        self.replays[size] = self.replays.get(size, 0) + 1
        self.padded_rows += size - n
        self.rows += n
        self.clamped_ids += clamped

    def snapshot(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "rows": self.rows,
            "failed": self.failed,
            "split_requests": self.split_requests,
            "portioned_requests": self.portioned_requests,
            "padded_rows": self.padded_rows,
            "clamped_ids": self.clamped_ids,
            "capacity_moves": self.capacity_moves,
            "capacity_splits": self.capacity_splits,
            "replays": dict(sorted(self.replays.items())),
        }


def total(parts: Sequence[Metrics]) -> Metrics:
    """The sum of the counters of several lanes."""
    whole = Metrics()
    for part in parts:
        for field_ in fields(Metrics):
            if field_.name != "replays":
                value = getattr(whole, field_.name) + getattr(part, field_.name)
                setattr(whole, field_.name, value)
        for size, count in part.replays.copy().items():
            whole.replays[size] = whole.replays.get(size, 0) + count
    return whole
