"""One bucket as the page draws it and as `inspect --bucket N --json` prints it: plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from recreplay.capture.schedule import (
    Schedule,
    idle_share,
    in_turn,
    longest_path,
    observed,
    side_by_side,
)
from recreplay.runtime.graph import BucketGraph, OperatorGraph
from recreplay.runtime.manifest import Bucket, Manifest
from recreplay.runtime.plan import Plan
from recreplay.tools.describe import describe_bucket, describe_plan
from recreplay.tools.view.measured import Measured

MODELLED = (
    "modelled: the slower of memory and arithmetic of each operator on an A100, plus 2 µs a "
    "launch; streams do not slow each other down, and fusion is not counted"
)
MEASURED = "measured: median of {runs} replays on this machine, segment by segment"
PROFILED = (
    "measured: the replay of median length of those that a profiler watched here kernel by kernel, "
    "which slows them down; starts count from that of the copy of the inputs"
)
SERIAL = "; the CPU replays segments one after the other, whatever lane they are in"


def bucket_view(
    bucket: Bucket, manifest: Manifest, graph: BucketGraph | None, measured: Measured | None
) -> dict[str, Any]:
    """Everything about one bucket: its steps, their times, its operators, and other strategies."""
    return {
        **describe_bucket(bucket, manifest),
        "strategy": bucket.plan.strategy,
        "steps": describe_plan(bucket),
        "edges": [list(edge) for edge in bucket.plan.edges],
        "timings": timings(bucket, manifest, graph, measured),
        "graph": None if graph is None else graph_view(graph.captured),
        "before": None if graph is None or graph.before is None else graph_view(graph.before),
    }


def timings(
    bucket: Bucket, manifest: Manifest, graph: BucketGraph | None, measured: Measured | None
) -> list[dict[str, Any]]:
    """When each segment runs: as measured if it was, and by the cost model; the best first."""
    found = []
    plan = bucket.plan
    if measured is not None:
        durations, starts = measured.segments_us, measured.starts_us
        serial = starts is None
        if starts is None:
            note = MEASURED.format(runs=measured.runs) + SERIAL
            timing = _timing("measured", note, plan, in_turn(plan, durations))
        else:
            timing = _timing("measured", PROFILED, plan, observed(plan, starts, durations))
            timing["kernels"] = [[asdict(k) for k in kernels] for kernels in measured.kernels]
        found.append({**timing, "serial_replay": serial, "replay_us": measured.replay_us})
    if graph is not None:
        costs = {op.name: op.modelled_us for op in graph.captured.operators}
        modelled = [sum(costs.get(op, 0.0) for op in s.operators) for s in bucket.segments]
        timing = _timing("modelled", MODELLED, plan, side_by_side(plan, modelled))
        found.append({**timing, "serial_replay": False, "replay_us": None})
    return found


def graph_view(graph: OperatorGraph) -> dict[str, Any]:
    """Operators as rows under named columns, and when they would run under each strategy."""
    plain = graph.to_json()
    costs = {op.name: op.modelled_us for op in graph.operators}
    for plan, item in zip(graph.plans, plain["plans"], strict=True):
        item |= summary(plan, [costs[step.name] for step in plan.steps])
    return plain


def strategies(graph: BucketGraph | None) -> list[dict[str, Any]]:
    """The strategies side by side, without their steps."""
    if graph is None:
        return []
    costs = {op.name: op.modelled_us for op in graph.captured.operators}
    made = []
    for plan in graph.captured.plans:
        full = summary(plan, [costs[step.name] for step in plan.steps])
        made.append({k: v for k, v in full.items() if k not in ("starts_us", "critical")})
    return made


def summary(plan: Plan, durations: Sequence[float]) -> dict[str, Any]:
    """A modelled plan: its totals, and the start of each step."""
    timing = _timing("modelled", MODELLED, plan, side_by_side(plan, durations))
    del timing["durations_us"], timing["note"]
    waits = sum(len(step.waits) for step in plan.steps)
    return {"strategy": plan.strategy, "stream_count": plan.streams, "wait_count": waits, **timing}


def _timing(kind: str, note: str, plan: Plan, schedule: Schedule) -> dict[str, Any]:
    return {
        "kind": kind,
        "note": note,
        "starts_us": [round(t, 3) for t in schedule.starts],
        "durations_us": [round(t, 3) for t in schedule.durations],
        "critical": [i for i, on in enumerate(schedule.critical) if on],
        "total_us": round(schedule.total, 3),
        "serial_us": round(schedule.serial, 3),
        "longest_path_us": round(longest_path(plan, schedule.durations), 3),
        "idle_share": round(idle_share(plan, schedule), 4),
    }
