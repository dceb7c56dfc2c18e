"""Quality and latency of funnels on the same queries, in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recreplay.runtime import Funnel, Stage
from recreplay.tools.bench.latency import Latency
from recreplay.tools.console import Progress
from recreplay.tools.funnel.pipelines import Pipeline
from recreplay.tools.funnel.quality import ndcg, overlap
from recreplay.tools.funnel.queries import Array, Query
from recreplay.tools.load.arrivals import arrival_times
from recreplay.tools.load.generator import run_load


@dataclass
class Measured:
    """One funnel: its quality, and its latencies in nanoseconds."""

    pipeline: Pipeline
    funnel: Funnel
    ndcg: float = 0.0
    overlap: float = 0.0
    ns: list[int] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)

    def latency(self) -> Latency:
        return Latency.from_ns(self.ns)

    def request(self, query: Query) -> dict[str, Any]:
        """The inputs of a query that this funnel has."""
        return {spec.name: query.request[spec.name] for spec in self.funnel.inputs}


def make(pipeline: Pipeline, models: Sequence[Stage], top: int) -> Funnel:
    """`models`: each with its score."""
    return Funnel(
        [
            Stage(models[at].runtime, keep, models[at].score)
            for at, keep in zip(pipeline.stages, (*pipeline.keeps, top), strict=True)
        ]
    )


def measure(
    chosen: Sequence[Pipeline],
    models: Sequence[Stage],
    queries: Sequence[Query],
    top: int,
    runs: int,
    progress: Progress,
) -> list[Measured]:
    """Of each funnel, `chosen[0]` being the last model alone. Every funnel ranks one query after
    the other in turn with the others, each round begun by another."""
    found = [Measured(p, make(p, models, top)) for p in chosen]
    wanted: list[Array] = []  # what the last model alone ranks first
    for item in found:
        ranked = [item.funnel.run(item.request(query)).rows for query in queries]
        wanted = wanted or ranked
        item.ndcg = _mean_ndcg(ranked, queries, wanted, top)
        item.overlap = float(np.mean([*map(overlap, ranked, wanted)]))
    clock = time.perf_counter_ns
    for turn in range(runs):
        if turn % 10 == 0:
            progress(f"{len(found)} funnels, round {turn} of {runs}")
        query = queries[turn % len(queries)]
        for at in range(len(found)):
            item = found[(at + turn) % len(found)]
            request = item.request(query)
            begun = clock()
            item.funnel.run(request)
            item.ns.append(clock() - begun)
    return found


def load(
    item: Measured, queries: Sequence[Query], rate: float, seconds: float, seed: int
) -> dict[str, Any]:
    """Open-loop load on one funnel: what became of the queries, in milliseconds."""
    times = arrival_times("exponential", rate, seconds, seed)
    requests = [item.request(queries[i % len(queries)]) for i in range(len(times))]
    return {"rate": rate, **run_load(item.funnel, requests, times).to_json()}


def frontier(found: Sequence[Measured]) -> list[bool]:
    """Of each, whether none is better and as fast, or faster and as good: by p95 and NDCG."""
    points = [(item.latency().p95, -item.ndcg) for item in found]
    return [not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points) for x, y in points]


def fastest(found: Sequence[Measured], loss: float) -> Measured:
    """The lowest p95 of those that lose at most the share `loss` of the NDCG of `found[0]`."""
    good = [item for item in found if item.ndcg >= (1 - loss) * found[0].ndcg]
    return min(good, key=lambda item: item.latency().p95)


def _mean_ndcg(
    ranked: Sequence[Array], queries: Sequence[Query], wanted: Sequence[Array], top: int
) -> float:
    """By labels or, where there are none, by the rows that the last model alone ranks first."""
    scores = []
    for rows, query, right in zip(ranked, queries, wanted, strict=True):
        known = query.labels
        labels = np.isin(rows, right) if known is None else known[rows]
        scores.append(ndcg(labels, top))
    return float(np.mean(scores))
