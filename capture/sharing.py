"""Which segments share a package: equal code is compiled once, over branches and over buckets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from recreplay.capture.generalise import DynamicCode, generalise
from recreplay.capture.segments import BoundSegment, SegmentCode

Code = SegmentCode | DynamicCode


def share(
    segments: Mapping[int, Sequence[BoundSegment]],
    dynamic: bool,
    apart: AbstractSet[str] = frozenset(),
) -> tuple[dict[str, Code], dict[int, list[str]]]:
    """The code to compile by package name, and the package of each segment of each bucket.

    With `dynamic`, one package with a dynamic batch serves all buckets but the smallest, where a
    segment's code allows it. The smallest is launch-bound and gains from constant sizes (17 % at
    batch 1), and a size of 1 cannot be dynamic anyway. Code named in `apart` is not shared by
    buckets.
    """
    common: dict[tuple[str, ...], dict[int, SegmentCode]] = defaultdict(dict)
    if dynamic:
        for bucket in sorted(segments)[1:]:
            for segment in segments[bucket]:
                common[segment.operators][bucket] = segment.code
    merged = {operators: generalise(codes) for operators, codes in common.items()}
    merged = {o: code for o, code in merged.items() if code and code.key() not in apart}
    codes: dict[str, Code] = {}
    keys: dict[int, list[str]] = {}
    for bucket, members in segments.items():
        keys[bucket] = []
        for segment in members:
            shared = merged.get(segment.operators) if bucket in common[segment.operators] else None
            code: Code = segment.code if shared is None else shared
            key = code.key()
            codes.setdefault(key, code)
            keys[bucket].append(key)
    return codes, keys
