"""One package for many buckets: code that differs between buckets by linear functions of the batch.

Static code of two buckets is compared number by number. Where the numbers differ, they must be `a
* batch + c` for every bucket; otherwise there is no common code, and each bucket keeps its own.
This keeps the analyses on static graphs, where they are exact, and still compiles once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recreplay.capture.segments import SegmentCode, code_key


@dataclass(frozen=True)
class DynamicCode:
    """Segment code as JSON, with `{"batch": [a, c]}` for the number `a * batch + c`."""

    data: dict[str, Any]
    low: int  # the smallest and largest batch it is for
    high: int

    def to_json(self) -> dict[str, Any]:
        return {"data": self.data, "low": self.low, "high": self.high}

    def at(self, batch: int) -> SegmentCode:
        """The static code for one batch."""
        return SegmentCode.from_json(_substitute(self.data, batch))

    def key(self) -> str:
        """Name of the code, blind to the number of rows of its tables."""
        return code_key(self.data, self.low, self.high)


def generalise(codes: Mapping[int, SegmentCode]) -> DynamicCode | None:
    """The common code of one segment at two or more batches, or None if there is none."""
    if len(codes) < 2 or min(codes) < 2:
        return None  # a size of 1 broadcasts, and is compiled as a constant
    (low, first), *_, (high, last) = sorted(codes.items())
    try:
        merged = _merge(first.to_json(), last.to_json(), low, high)
    except _NotLinearError:
        return None
    found = DynamicCode(merged, low, high)
    if any(found.at(batch) != code for batch, code in codes.items()):
        return None
    return found if _has_batch(merged) else None


class _NotLinearError(Exception):
    pass


def _merge(first: Any, last: Any, low: int, high: int) -> Any:
    if type(first) is not type(last):
        raise _NotLinearError
    if isinstance(first, dict):
        if first.keys() != last.keys():
            raise _NotLinearError
        return {k: _merge(first[k], last[k], low, high) for k in first}
    if isinstance(first, list):
        if len(first) != len(last):
            raise _NotLinearError
        return [_merge(a, b, low, high) for a, b in zip(first, last, strict=True)]
    if first == last:
        return first
    if type(first) is not int or (last - first) % (high - low):
        raise _NotLinearError
    slope = (last - first) // (high - low)
    offset = first - slope * low
    if slope < 1 or offset < 0:
        raise _NotLinearError
    return {"batch": [slope, offset]}


def _substitute(data: Any, batch: int) -> Any:
    if isinstance(data, dict):
        if set(data) == {"batch"}:
            slope, offset = data["batch"]
            return slope * batch + offset
        return {k: _substitute(v, batch) for k, v in data.items()}
    if isinstance(data, list):
        return [_substitute(v, batch) for v in data]
    return data


def _has_batch(data: dict[str, Any]) -> bool:
    """Whether some tensor has the batch itself as a size, from which the rest is computed."""
    shapes = [shape for _, shape in [*data["inputs"], *data["outputs"]]]
    return any(d == {"batch": [1, 0]} for shape in shapes for d in shape)
