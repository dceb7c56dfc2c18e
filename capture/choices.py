"""The ways to run a bucket that are worth trying: rewrites, strategy, streams, compiler."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from recreplay.capture.assign import STRATEGIES
from recreplay.capture.compilers.inductor import AUTOTUNED
from recreplay.capture.precision import CASTS

Tune = Literal["off", "quick", "full"]
TUNES: tuple[Tune, ...] = get_args(Tune)
# A candidate is not compiled where the cost model has it so many times slower than the best one.
# The model knows bytes, operations and launches, not what a compiler fuses: only gross differences.
HOPELESS = 2.0


@dataclass(frozen=True)
class Choice:
    """One way to run a bucket."""

    rewrites: tuple[str, ...]
    strategy: str
    streams: int
    compiler: str
    precision: str = "fp32"  # of matrix products

    def describe(self) -> str:
        streams = "" if self.strategy == "single" else f" on {self.streams} streams"
        rewrites = ", ".join(self.rewrites) or "no rewrites"
        precision = "" if self.precision == "fp32" else f" in {self.precision}"
        return f"{self.compiler}{precision}, {self.strategy}{streams}, {rewrites}"


def choices(
    tune: Tune, given: Choice, device: str, free_strategy: bool, tensorrt: bool = False
) -> list[Choice]:
    """What to measure, the given choice first.

    `quick` tries the larger rewrites and, on CUDA, one stream against several; `full` every set of
    rewrites and, on CUDA, all strategies with 2, 4, 8 and as many streams as given. On the CPU a
    graph replays serially, so more streams are only more segments. `free_strategy`: whether the
    strategy may differ from the given one. `tensorrt`: whether engines for dense segments can be
    built here. Where products are given a lower precision, float32 is tried too: of few rows it may
    be faster. On CUDA, `full` also measures kernels of products, bucket by bucket.
    """
    if tune == "off":
        return [given]
    found = [given]
    for rewrites in _rewrite_sets(given.rewrites, tune):
        for strategy, streams in _placements(given, tune, device, free_strategy):
            found.append(replace(given, rewrites=rewrites, strategy=strategy, streams=streams))
    if given.precision in CASTS:
        wide = found if tune == "full" else [given]
        found += [replace(choice, precision="fp32") for choice in wide]
    layers = _without(given.rewrites, "fuse_epilogues")  # these fuse what follows layers themselves
    if device == "cuda" and tune == "full" and given.compiler == "inductor":
        found.append(replace(given, compiler=AUTOTUNED, rewrites=layers))
    if tensorrt and given.compiler == "inductor":
        found.append(replace(given, compiler="tensorrt", rewrites=layers))
    return list(dict.fromkeys(found))


def _rewrite_sets(given: tuple[str, ...], tune: Tune) -> list[tuple[str, ...]]:
    sets = [given, _without(given, "stack_branches"), _without(given, "pack_linears")]
    sets += [_without(given, n) for n in ("group_lookups", "spread_bags", "fuse_epilogues")]
    if tune == "full":
        sets += [
            _without(given, "inline_linears"),
            _without(given, "inline_columns"),
            _without(given, "stack_branches", "stack_lookups", "group_lookups"),
        ]
        sets.append(())
    return list(dict.fromkeys(sets))


def _without(rewrites: tuple[str, ...], *names: str) -> tuple[str, ...]:
    return tuple(r for r in rewrites if r not in names)


def _placements(
    given: Choice, tune: Tune, device: str, free_strategy: bool
) -> list[tuple[str, int]]:
    if device == "cpu":
        return [(given.strategy, given.streams)]
    # With as many streams as branches, no two share one, and the graph has the data's edges alone.
    fewer = [k for k in (2, 4, 8) if k < given.streams] if tune == "full" else []
    widths = [*fewer, given.streams]
    if not free_strategy:
        return [
            (given.strategy, k) for k in ([given.streams] if given.strategy == "single" else widths)
        ]
    several = [s for s in STRATEGIES if s != "single"] if tune == "full" else [given.strategy]
    return [("single", 1), *((s, k) for s in several if s != "single" for k in widths)]
