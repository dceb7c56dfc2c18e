"""Named sets of models to measure, so that results of two days are of the same thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from recreplay.runtime.errors import RecReplayError


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One model: what to capture with which buckets, and which batch sizes to measure."""

    target: str
    arguments: tuple[str, ...]
    buckets: tuple[int, ...]
    batches: tuple[int, ...]
    # Ours takes what the model calls `user_inputs` once a request, and peers for all rows.
    user_side: bool = False

    @property
    def name(self) -> str:
        """The model's name, without where it is defined."""
        return self.target.rpartition(":")[2] + self.suffix

    @property
    def suffix(self) -> str:
        """What is said of the model besides its name."""
        return "_user_side" if self.user_side else ""


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    description: str
    benchmarks: tuple[Benchmark, ...]


# What shrinks the tables of a model to at most half a gigabyte, far beyond any cache, so that
# several contenders fit into memory side by side.
_ROWS_SCALE = {
    "wide_deep": 0.1,
    "mt_wide_deep": 0.1,
    "dlrm_rmc1": 0.1,
    "dlrm_rmc2": 0.1,
    "dlrm_rmc3": 0.15,
    "din": 0.15,
    "dien": 0.3,
    "microrec_47": 0.3,
    "microrec_98": 0.03,
    "two_tower": 0.1,
    "rm_small": 0.5,
    "rm_med": 0.2,
    "rm_large": 0.1,
}
_DEEPRECINFRA = (
    "ncf",
    "wide_deep",
    "mt_wide_deep",
    "dlrm_rmc1",
    "dlrm_rmc2",
    "dlrm_rmc3",
    "din",
    "dien",
)
_MICROREC = ("microrec_47", "microrec_98")
_CORE = ("dlrm", "streamrec", *_DEEPRECINFRA, *_MICROREC, "rm_small", "rm_med", "rm_large")


def _models(names: Sequence[str], sizes: tuple[int, ...]) -> tuple[Benchmark, ...]:
    made = []
    for name in names:
        scale = _ROWS_SCALE.get(name)
        arguments = () if scale is None else (f"rows_scale={scale}",)
        made.append(Benchmark(f"recreplay.models:{name}", arguments, sizes, sizes))
    return tuple(made)


_SUITES = (
    Suite(
        "foundation",
        "a DLRM of 26 tables x 20 lookups, and 40 features with attention pooling",
        (
            Benchmark("recreplay.models:dlrm", (), (1, 16, 64, 128), (1, 16, 128)),
            Benchmark("recreplay.models:streamrec", (), (1, 16, 64, 128), (1, 16)),
        ),
    ),
    Suite(
        "core",
        "all reference models without jagged inputs, tables of at most half a gigabyte",
        _models(_CORE, (1, 16, 128)),
    ),
    Suite(
        "jagged",
        "a user with jagged histories and candidates with jagged tags, tables of 41 MB: all of it "
        "by row, and the user once a request",
        tuple(
            replace(benchmark, user_side=user_side)
            for user_side in (False, True)
            for benchmark in _models(("two_tower",), (1, 16, 128))
        ),
    ),
    Suite(
        "deeprecinfra",
        "the eight models of DeepRecInfra, tables of at most half a gigabyte",
        _models(_DEEPRECINFRA, (1, 16, 64, 256, 1024)),
    ),
    Suite(
        "microrec",
        "the two models of MicroRec, tables of at most half a gigabyte",
        _models(_MICROREC, (1, 16, 64, 256, 1024)),
    ),
)

SUITES: Mapping[str, Suite] = MappingProxyType({suite.name: suite for suite in _SUITES})


def find_suite(name: str) -> Suite:
    """The suite of that name."""
    if name not in SUITES:
        raise RecReplayError(
            f"unknown suite {name!r}; there is {', '.join(SUITES)}, overhead, scaling, precision "
            "and cartesian"
        )
    return SUITES[name]
