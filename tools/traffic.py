"""Requests of mixed sizes: the edges of every bucket, what lies between, and more than fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from recreplay.runtime.errors import RecReplayError

if TYPE_CHECKING:
    from recreplay.tools.bench.compare import Session


@dataclass(frozen=True, slots=True)
class Part:
    """One replay of a request: so many of its rows in a bucket."""

    bucket: int
    rows: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was replayed, by the runtime's own counters."""

    rows: tuple[int, ...]  # of each request
    padded_rows: int
    split_requests: int
    max_abs_error: float

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": len(self.rows),
            "rows": sum(self.rows),
            "smallest": min(self.rows),
            "largest": max(self.rows),
            "padded_rows": self.padded_rows,
            "split_requests": self.split_requests,
            "max_abs_error": self.max_abs_error,
        }


def mixed_sizes(buckets: Sequence[int]) -> list[int]:
    """Each bucket and one row less and more, the middle between neighbours, 2.5 x the largest."""
    sizes = {n for b in buckets for n in (b - 1, b, b + 1) if n >= 1}
    sizes |= {(low + high) // 2 for low, high in pairwise(sorted(buckets))}
    sizes.add(max(buckets) * 5 // 2)
    return sorted(sizes)


def parts(rows: int, buckets: Sequence[int]) -> Iterator[Part]:
    """How a request is replayed: in the smallest bucket that holds it, in pieces if none does."""
    ordered = sorted(buckets)
    while rows > 0:
        piece = min(rows, ordered[-1])
        yield Part(next(b for b in ordered if b >= piece), piece)
        rows -= piece


def replay_mixed(session: Session, sizes: Sequence[int], rounds: int = 3) -> Traffic:
    """Replay `rounds` requests of every size, small and large in turns, each checked by eager."""
    before = session.runtime.stats()
    rows: list[int] = []
    worst = 0.0
    # Small after large: what a large request leaves in the buffers must not show in a small one.
    order = [n for pair in zip(sizes, reversed(sizes), strict=True) for n in pair][: len(sizes)]
    for turn in range(rounds):
        for n in order:
            request = session.requests(n, count=1, seed=100 + turn)[0]
            worst = max(worst, session.check(request))
            rows.append(n)
    after = session.runtime.stats()
    counted = {k: after[k] - before[k] for k in ("requests", "padded_rows", "split_requests")}
    buckets = [b.size for b in session.runtime.manifest.buckets]
    padded = sum(p.bucket - p.rows for n in rows for p in parts(n, buckets))
    if counted["padded_rows"] != padded or counted["requests"] != len(rows):
        raise RecReplayError(
            f"the runtime counted {counted} for requests of {rows} rows; expected {padded} rows of "
            "padding"
        )
    return Traffic(tuple(rows), padded, counted["split_requests"], worst)
