"""Counters of a runtime: what was replayed, padded, split and clamped. Nothing happens unseen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Metrics:
    """Written under the runtime's lock; read through `snapshot`."""

    requests: int = 0
    rows: int = 0
    failed: int = 0
    split_requests: int = 0
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
            "padded_rows": self.padded_rows,
            "clamped_ids": self.clamped_ids,
            "capacity_moves": self.capacity_moves,
            "capacity_splits": self.capacity_splits,
            "replays": dict(sorted(self.replays.items())),
        }
