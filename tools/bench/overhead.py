"""`bench --suite overhead`: what the host adds to a replay, request by request.

The replay inside of a request is timed apart from the whole request, call by call. What is left
is names, shapes, dtypes, ids, filling and copying out: the runtime's own cost. With borrowed
views the caller writes into the staging memory itself; those writes are timed apart and are
not the runtime's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import RenderableType

from recreplay.tools import strict, tables
from recreplay.tools.bench.captured import captured
from recreplay.tools.bench.latency import Latency
from recreplay.tools.bench.report import machine
from recreplay.tools.bench.suites import Benchmark
from recreplay.tools.console import Progress

if TYPE_CHECKING:
    from recreplay.runtime import Runtime
    from recreplay.tools.bench.compare import Session
    from recreplay.tools.bench.timed_lane import TimedLane

KIND = "recreplay-bench-overhead"
SIZES = (1, 16, 128)
BENCHMARKS = (
    # 26 id features with one id each, and 13 dense values
    Benchmark("recreplay.models:rm_small", ("rows_scale=0.1",), SIZES, SIZES),
    # the same with 20 ids each
    Benchmark("recreplay.models:dlrm", ("rows_scale=0.1",), SIZES, SIZES),
    # three jagged features of about 50, 10 and 3 ids, two of one id, and 24 dense values
    Benchmark("recreplay.models:two_tower", ("rows_scale=0.1",), SIZES, SIZES),
)
TURNS = 40  # requests of one kind before those of the next


def measure(
    benchmarks: Sequence[Benchmark],
    runs: int,
    progress: Progress,
    settings: dict[str, Any],
    strict_mode: bool = False,
) -> dict[str, Any]:
    """The report: for each model and batch, dicts of arrays, of tensors, and borrowed views."""
    from recreplay.tools.bench.stamp import heading

    return {
        **heading(KIND, runs),
        "results": [_measure_one(b, runs, progress, settings, strict_mode) for b in benchmarks],
    }


def _measure_one(
    benchmark: Benchmark,
    runs: int,
    progress: Progress,
    settings: dict[str, Any],
    strict_mode: bool,
) -> dict[str, Any]:
    from recreplay.tools.bench.compare import Session
    from recreplay.tools.quiet import quiet

    batches = []
    with (
        captured(benchmark, progress, settings, strict_mode=strict_mode) as model,
        Session(model.target, model.path, settings["device"]) as session,
    ):
        for batch in benchmark.batches:
            progress(f"{model.target.name}: batch {batch}, {runs} requests")
            with quiet():
                batches.append({"batch": batch} | _measure_batch(session, batch, runs))
    return {
        **model.to_json(),
        "inputs": len(model.manifest.inputs),
        "notices": strict.remarks(model.manifest),
        "batches": batches,
    }


def _measure_batch(session: Session, batch: int, runs: int) -> dict[str, Any]:
    """The three ways take turns: the machine's speed changes from second to second."""
    from recreplay.tools.bench.compare import HostCost, host_times
    from recreplay.tools.bench.requests import as_arrays

    runtime, lane = session.timed_runtime()
    requests = session.requests(batch)
    arrays = [as_arrays(request) for request in requests]
    jagged = [spec.name for spec in runtime.manifest.inputs if spec.kind == "values"]
    lent = [Lendable(a, {name: len(a[name]) for name in jagged} or None) for a in arrays]
    times: dict[str, tuple[list[int], ...]] = {
        "arrays": ([], []),
        "tensors": ([], []),
        "borrowed": ([], [], []),
    }
    for first in range(-TURNS, runs, TURNS):
        turns = range(first, min(first + TURNS, runs))
        found = {
            "arrays": host_times(runtime, lane, arrays, turns),
            "tensors": host_times(runtime, lane, requests, turns),
            "borrowed": _borrowed(runtime, lane, lent, batch, turns),
        }
        if first < 0:
            continue  # warm now
        for way, lists in found.items():
            for kept, new in zip(times[way], lists, strict=True):
                kept += new
    cost, tensors = (HostCost.of(*times[way]) for way in ("arrays", "tensors"))
    whole, replays, writes = times["borrowed"]
    without_writes = [whole_ns - ns for whole_ns, ns in zip(whole, writes, strict=True)]
    return {
        "run_us": cost.run.to_json(),
        "graph_us": cost.replay.to_json(),
        "overhead_us": cost.overhead.to_json(),
        "tensors_overhead_us": tensors.overhead.to_json(),
        "borrowed": {
            "run_us": Latency.from_ns(whole).to_json(),
            "writes_us": Latency.from_ns(writes).to_json(),
            "overhead_us": HostCost.of(without_writes, replays).overhead.to_json(),
        },
    }


class Lendable(NamedTuple):
    """A request, and how many values its jagged inputs have."""

    arrays: dict[str, Any]
    values: dict[str, int] | None


def _borrowed(
    runtime: Runtime, lane: TimedLane, requests: Sequence[Lendable], batch: int, turns: range
) -> tuple[list[int], list[int], list[int]]:
    """Nanoseconds of borrowing, writing and running; of the replays; and of the writes, which are
    the caller's."""
    clock = time.perf_counter_ns
    whole, replays, writes = [], [], []
    for turn in turns:
        given = requests[turn % len(requests)]
        lane.replay_ns.clear()
        begun = clock()
        with runtime.borrow(batch, given.values) as request:
            write = clock()
            views = request.inputs
            for name, array in given.arrays.items():
                views[name][:] = array
            written = clock()
            request.run()
        ended = clock()
        whole.append(ended - begun)
        replays.append(sum(lane.replay_ns))
        writes.append(written - write)
    return whole, replays, writes


def render(report: dict[str, Any]) -> Iterator[RenderableType]:
    """A table a model."""
    for result in report["results"]:
        yield tables.table(
            f"{result['name']}: {result['inputs']} inputs ({result['compiler']})",
            (
                *("batch>", "run>", "replay>", "host>", "p99>", "tensors: host>"),
                *("borrowed: host>", "p99>", "writes>"),
            ),
            [_row(batch) for batch in result["batches"]],
        )
    yield (
        f"Microseconds, medians over {report['runs']} requests. Host: what Runtime.run adds to "
        "the replay inside of it, call by call, with numpy arrays and with torch's tensors. "
        "Borrowed: the same where the caller writes into the staging views; its writes are "
        f"apart.\n{machine(report['stamp'])}"
    )


def _row(batch: dict[str, Any]) -> tuple[str, ...]:
    views = batch["borrowed"]
    return (
        str(batch["batch"]),
        tables.micros(batch["run_us"]["p50"]),
        tables.micros(batch["graph_us"]["p50"]),
        tables.micros(batch["overhead_us"]["p50"]),
        tables.micros(batch["overhead_us"]["p99"]),
        tables.micros(batch["tensors_overhead_us"]["p50"]),
        tables.micros(views["overhead_us"]["p50"]),
        tables.micros(views["overhead_us"]["p99"]),
        tables.micros(views["writes_us"]["p50"]),
    )
