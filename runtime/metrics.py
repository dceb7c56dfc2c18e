"""Counters of a runtime: what was replayed, padded, split and clamped. Nothing happens unseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Metrics:
    """Of one lane: written by whoever has the lane, read by anybody through `total`."""

    requests: int = 0
    split_requests: int = 0  # above the largest bucket
    portioned_requests: int = 0  # that a bucket holds, but smaller ones answer sooner
    clamped_ids: int = 0
    capacity_moves: int = 0  # replays in a larger bucket than their rows need, for their values
    capacity_splits: int = 0  # requests in more parts than their rows need
    replays: dict[tuple[int, int], int] = field(default_factory=dict)  # by bucket and rows

    def snapshot(self) -> dict[str, Any]:
        """The counters, with the rows that requests had and those that were padded."""
        counted = {f.name: getattr(self, f.name) for f in fields(self)}
        buckets: dict[int, int] = {}
        for (size, _), times in sorted(self.replays.items()):
            buckets[size] = buckets.get(size, 0) + times
        return {
            **counted,
            "rows": sum(rows * times for (_, rows), times in self.replays.items()),
            "padded_rows": sum((s - rows) * times for (s, rows), times in self.replays.items()),
            "replays": buckets,
        }


def total(parts: Sequence[Metrics]) -> Metrics:
    """The sum of the counters of several lanes."""
    whole = Metrics()
    for part in parts:
        for counter in fields(Metrics):
            if counter.name != "replays":
                value = getattr(whole, counter.name) + getattr(part, counter.name)
                setattr(whole, counter.name, value)
        for key, times in part.replays.copy().items():
            whole.replays[key] = whole.replays.get(key, 0) + times
    return whole
