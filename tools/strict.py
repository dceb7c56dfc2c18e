"""What was done otherwise than one might expect, in words; `--strict` makes it an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recreplay.runtime.errors import RecReplayError
from recreplay.runtime.manifest import Manifest
from recreplay.tools.console import NOTICE


class StrictError(RecReplayError):
    """There were notices, and `--strict` was given."""


def remarks(manifest: Manifest) -> list[str]:
    """The notices of a capture, and the tables whose ids no request check covers."""
    found = [notice.removeprefix(NOTICE) for notice in manifest.notices]
    if manifest.unchecked:
        found.append(
            f"ids of {', '.join(manifest.unchecked)} are computed inside of the model, so "
            "requests are not checked against the number of rows"
        )
    return found


def batch_remarks(batches: Sequence[int], buckets: Sequence[int]) -> list[str]:
    """The batch sizes of a measurement that no bucket is captured for."""
    found = []
    for batch in batches:
        bucket = min((size for size in buckets if size >= batch), default=max(buckets))
        if batch > bucket:
            found.append(f"batch {batch} is replayed in parts of {bucket}")
        elif batch < bucket:
            found.append(f"batch {batch} is padded to bucket {bucket}")
    return found


def request_remarks(stats: Mapping[str, Any]) -> list[str]:
    """What a runtime's counters say beyond plain replays."""
    words = {
        "split_requests": "requests were larger than the largest bucket and were split",
        "padded_rows": "rows of padding were replayed",
        "clamped_ids": "ids were out of range and were clamped",
        "capacity_moves": "replays ran in a larger bucket for room for their jagged values",
        "capacity_splits": "requests were split for room for their jagged values",
    }
    return [f"{stats[key]} {text}" for key, text in words.items() if stats[key]]


def refuse(found: Sequence[str]) -> None:
    """Raise StrictError if anything was found."""
    if found:
        raise StrictError(f"--strict: {'; '.join(found)}")
