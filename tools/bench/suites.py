"""Named sets of models to measure, so that results of two days are of the same thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from recreplay.runtime.errors import RecReplayError


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One model: what to capture with which buckets, and which batch sizes to measure."""

    target: str
    arguments: tuple[str, ...]
    buckets: tuple[int, ...]
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    description: str
    benchmarks: tuple[Benchmark, ...]


_SUITES = (
    Suite(
        "foundation",
        "a DLRM of 26 tables x 20 lookups, and 40 features with attention pooling",
        (
            Benchmark("recreplay.models:dlrm", (), (1, 16, 64, 128), (1, 16, 128)),
            Benchmark("recreplay.models:streamrec", (), (1, 16, 64, 128), (1, 16)),
        ),
    ),
)

SUITES: Mapping[str, Suite] = MappingProxyType({suite.name: suite for suite in _SUITES})


def find_suite(name: str) -> Suite:
    """The suite of that name."""
    if name not in SUITES:
        raise RecReplayError(f"unknown suite {name!r}; there is {', '.join(SUITES)}")
    return SUITES[name]
