"""Measure ways to run each bucket on the device that will serve, and keep the fastest of each.

The best form depends on the batch: stacking gains most at batch 1 and nothing at 128, and nothing
but measuring tells where it turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recreplay.capture.assembly import Assembly, Keys
from recreplay.capture.choices import HOPELESS, Choice
from recreplay.capture.ingest import Ingested
from recreplay.capture.planning import Planned, Survey, plan_buckets, sources
from recreplay.capture.sampling import sample_request
from recreplay.capture.tune_cache import cache_key, recall, remember
from recreplay.capture.tune_timing import Effort, Timed, medians
from recreplay.capture.weight_file import weight_tensors
from recreplay.runtime.artifact import LAUNCHER
from recreplay.runtime.devices import open_device
from recreplay.runtime.lane import Lane
from recreplay.runtime.loading import as_segments_name, open_lane
from recreplay.runtime.manifest import Candidate, Manifest
from recreplay.runtime.mixed import make_checker
from recreplay.runtime.portions import best_portion, measured_us
from recreplay.runtime.request import RequestChecker
from recreplay.runtime.spec import IdBound
from recreplay.runtime.weight_copies import KINDS, make_copies

# Two candidates so close are equal, and the one with fewer streams is taken.
_TIE = 0.02
_REQUESTS = 8
_LATE = "not measured: the time for tuning was up"


def tune_buckets(
    assembly: Assembly,
    sizes: Sequence[int],
    tried: Sequence[Choice],
    known: Survey,
    effort: Effort,
    seconds: float | None,
    environment: Mapping[str, str],
    progress: Callable[[str], None],
) -> tuple[list[Planned], Manifest]:
    """The fastest plan of each bucket, and the manifest of them with all that was measured."""
    plans = []
    for choice in tried:
        progress(f"planning: {choice.describe()}")
        plans.append(plan_buckets(assembly.model, sizes, choice, known, lambda _: None))
    keys = [assembly.keys(c, p) for c, p in zip(tried, plans, strict=True)]
    shapes = {k: v.shape for k, v in assembly.model.exported.state_dict.items()}
    key = cache_key(keys, shapes, environment, effort, assembly.device)
    candidates = recall(key)
    if candidates is None:
        candidates = _measured(assembly, tried, plans, keys, known, effort, seconds, progress)
        # A tuning that ran out of time is not what the next one should rely on.
        if not any(c.note == _LATE for c in candidates):
            remember(key, candidates)
    else:
        progress("tuned before on this device: taking what was fastest then")
    chosen, used = [], {}
    for at, size in enumerate(sizes):
        best = [c for c in candidates if c.bucket == size]
        pick = next(i for i, c in enumerate(best) if c.chosen)
        chosen.append(plans[pick][at])
        used[size] = assembly.compile(tried[pick], plans[pick])[size]
        progress(f"bucket {size}: {tried[pick].describe()}")
    manifest = replace(assembly.manifest(chosen, used), candidates=tuple(candidates))
    costs = measured_us(manifest)
    for size in costs:
        if (portion := best_portion(costs, size)) != size:
            progress(f"bucket {size}: requests of so many rows run faster in parts of {portion}")
    return chosen, manifest


def _measured(
    assembly: Assembly,
    tried: Sequence[Choice],
    plans: Sequence[Sequence[Planned]],
    keys: Sequence[Keys],
    known: Survey,
    effort: Effort,
    seconds: float | None,
    progress: Callable[[str], None],
) -> list[Candidate]:
    """Compile what is worth it, and measure it."""
    begun = time.perf_counter()
    # The model counts kernels; what a compiler fuses into one on a CPU, it does not know.
    on_cpu = assembly.device == "cpu"
    skipped = hopeless([[p.modelled_us for p in planned] for planned in plans])
    notes: list[str] = []
    packages = list(keys)
    for at, choice in enumerate(tried):
        if skipped[at] and not on_cpu:
            notes.append(f"modelled more than {HOPELESS:g} times slower than the best")
        elif at and seconds is not None and time.perf_counter() - begun > seconds:
            notes.append(_LATE)
        else:
            progress(f"candidate {at + 1} of {len(tried)}: {choice.describe()}")
            # Not always those it was to have: code may have to be compiled for each bucket.
            packages[at] = assembly.compile(choice, plans[at])
            notes.append("")
    lanes = LaneMaker(assembly, [p for planned in plans for p in planned], known)
    contenders: list[Contender] = []
    try:
        for choice, planned, used, note in zip(tried, plans, packages, notes, strict=True):
            runner = None if note else lanes.runner(assembly.manifest(planned, used))
            contenders.append(Contender(choice, planned, used, runner, note))
        found = measure(assembly.model, contenders, known.bounds, effort, progress)
        return _second_look(found, assembly.model, contenders, known.bounds, effort, progress)
    finally:
        for contender in contenders:
            if contender.runner is not None:
                contender.runner.lane.close()


class LaneMaker:
    """Lanes over one copy of the weights, before there is an artifact to load."""

    def __init__(self, assembly: Assembly, planned: Sequence[Planned], known: Survey) -> None:
        self._assembly = assembly
        device = open_device(assembly.device)
        target = device.torch_device
        device.close()
        weights = weight_tensors(assembly.model, planned, known, target)
        constants = {k: v.to(target) for p in planned for k, v in p.program.constants.items()}
        copies = {
            f"{kind}:{name}"
            for p in planned
            for kind in KINDS
            for name in sources(p.program.graph, kind)
        }
        made = make_copies(copies, weights, assembly.block_columns)
        self._tensors = as_segments_name(weights, constants, made)

    def runner(self, manifest: Manifest) -> Runner:
        folder = self._assembly.folder
        device = open_device(self._assembly.device, launcher=folder / LAUNCHER)
        lane = open_lane(manifest, folder, device, self._tensors)
        return Runner(lane, make_checker(manifest, "error"))


@dataclass(frozen=True)
class Runner:
    """A lane, and what brings requests into the order that it is filled in, which rewrites
    change."""

    lane: Lane
    checker: RequestChecker

    def on(self, size: int, requests: Sequence[Mapping[str, Any]]) -> Timed:
        """A bucket of the lane, for requests of `size` rows."""
        filled = [self.checker.check(request)[0] for request in requests]
        return Timed(self.lane.prepare_in(size, size), filled)


@dataclass(frozen=True)
class Contender:
    """A choice with its plans, ready to be replayed; or why it is not."""

    choice: Choice
    planned: Sequence[Planned]
    keys: Keys
    runner: Runner | None
    note: str

    def same(self, other: Contender, size: int) -> bool:
        """Whether the two replay the same packages in the same order in a bucket."""
        plans = [next(p.plan for p in c.planned if p.program.bucket == size) for c in (self, other)]
        return self.keys[size] == other.keys[size] and plans[0] == plans[1]


def hopeless(modelled: Sequence[Sequence[float]]) -> list[bool]:
    """Which choices the cost model has far behind the best of every bucket.

    `modelled[i]` are the times of choice i, bucket by bucket. The first, which was asked for, is
    measured anyway.
    """
    best = [min(times) for times in zip(*modelled, strict=True)]
    return [
        i > 0 and all(t > HOPELESS * b for t, b in zip(times, best, strict=True))
        for i, times in enumerate(modelled)
    ]


def measure(
    model: Ingested,
    contenders: Sequence[Contender],
    bounds: Sequence[IdBound],
    effort: Effort,
    progress: Callable[[str], None],
) -> list[Candidate]:
    """All contenders of all buckets in turns, on the same random requests, filling included."""
    found = []
    for at, planned in enumerate(contenders[0].planned):
        size = planned.program.bucket
        progress(f"tuning bucket {size}: {len(contenders)} candidates")
        notes = _notes(contenders, size)
        requests = _requests(model, bounds, size)
        timed = {
            (size, i): c.runner.on(size, requests)
            for i, c in enumerate(contenders)
            if c.runner is not None and not notes[i]
        }
        took = medians(timed, effort)
        times = [took.get((size, i)) for i in range(len(contenders))]
        best = choose(times, [c.planned[at].plan.streams for c in contenders])
        for i, contender in enumerate(contenders):
            us = times[i]
            found.append(
                Candidate(
                    bucket=size,
                    rewrites=contender.choice.rewrites,
                    strategy=contender.choice.strategy,
                    streams=contender.planned[at].plan.streams,
                    compiler=contender.choice.compiler,
                    modelled_us=round(contender.planned[at].modelled_us, 3),
                    us=None if us is None else round(us, 3),
                    chosen=i == best,
                    note=notes[i],
                    precision=contender.choice.precision,
                )
            )
    return found


def _requests(model: Ingested, bounds: Sequence[IdBound], size: int) -> list[dict[str, Any]]:
    return [
        {
            name: tensor.numpy()
            for name, tensor in sample_request(
                model.inputs, bounds, model.example, size, seed, users=model.users
            ).items()
        }
        for seed in range(_REQUESTS)
    ]


def _second_look(
    found: list[Candidate],
    model: Ingested,
    contenders: Sequence[Contender],
    bounds: Sequence[IdBound],
    effort: Effort,
    progress: Callable[[str], None],
) -> list[Candidate]:
    """What is kept of all buckets once more, in turns, where requests would be cut by the times
    that were found: these are of one moment each, and the machine may have been busy in one of
    them. The shorter of both times is kept."""
    kept = {c.bucket: (i % len(contenders), c.us) for i, c in enumerate(found) if c.chosen}
    costs = {size: us for size, (_, us) in kept.items() if us is not None}
    if model.row_mask is not None or all(best_portion(costs, size) == size for size in costs):
        return found
    progress("tuning: all buckets in turns, before requests are cut by what they take")
    timed = {}
    for size, (i, _) in kept.items():
        runner = contenders[i].runner
        assert runner is not None
        timed[size, i] = runner.on(size, _requests(model, bounds, size))
    again = {size: us for (size, _), us in medians(timed, effort).items()}
    return [
        replace(c, us=round(min(costs[c.bucket], again[c.bucket]), 3)) if c.chosen else c
        for c in found
    ]


def _notes(contenders: Sequence[Contender], size: int) -> list[str]:
    """Why a contender is not measured in a bucket; empty where it is."""
    notes: list[str] = []
    for at, contender in enumerate(contenders):
        same = (i for i in range(at) if not notes[i] and contender.same(contenders[i], size))
        twin = next(same, None)
        if contender.note or twin is None:
            notes.append(contender.note)
        else:
            notes.append(f"the same as {contenders[twin].choice.describe()}")
    return notes


def choose(times: Sequence[float | None], streams: Sequence[int]) -> int:
    """The fastest; of those within 2 % of it, the one with the fewest streams, then the first."""
    fastest = min(t for t in times if t is not None)
    close = [i for i, t in enumerate(times) if t is not None and t <= fastest * (1 + _TIE)]
    return min(close, key=lambda i: (streams[i], i))
