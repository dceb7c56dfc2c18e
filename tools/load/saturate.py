"""`recreplay saturate`: what lanes, batching and coroutines give, and cost at low load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recreplay.runtime.errors import RecReplayError
from recreplay.tools import options, tables
from recreplay.tools.console import Progress, print_json, show
from recreplay.tools.files import check_output, write_json
from recreplay.tools.query_sizes import MOST

if TYPE_CHECKING:
    from rich.table import Table

    from recreplay.runtime import Runtime
    from recreplay.tools.load.coroutines import Requests

_TURNS = 17  # requests of a size, which are asked again and again


def saturate(
    artifact: Annotated[Path, typer.Argument(help="An artifact that capture wrote.")],
    rows: Annotated[str, typer.Option(help="Rows of a request.")] = "1,16,128",
    lanes: Annotated[str, typer.Option(help="Numbers of lanes.")] = "1,2,4",
    delays: Annotated[str, typer.Option(help="Batching delays, µs.")] = "0,200,1000",
    seconds: Annotated[float, typer.Option(help="For each measurement.", min=0.05)] = 2.0,
    out: Annotated[Path | None, typer.Option(help="Write the report here too, as JSON.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure throughput by lanes, batching at both ends of the load, coroutines, and `run` beside
    a thread of Python."""
    from recreplay.tools.bench.stamp import stamp

    sizes = options.parse_numbers(rows, "--rows", "rows of a request", 1, MOST)
    counts = options.parse_numbers(lanes, "--lanes", "numbers of lanes", 1)
    waits: list[int | None] = [
        None,
        *options.parse_numbers(delays, "--delays", "batching delays in microseconds", 0),
    ]
    if not isfinite(seconds):
        raise RecReplayError(f"--seconds is {seconds:g}; expected a finite number")
    check_output(out)
    with Progress() as progress:
        report = {
            "kind": "recreplay-saturate",
            "artifact": artifact.name,
            "seconds": seconds,
            **dict(measured(artifact, sizes, counts, waits, seconds, progress)),
            "stamp": stamp(threads=1),
        }
    if out is not None:
        write_json(out, report)
    if as_json:
        print_json(report)
        return
    _show(report)


def measured(
    artifact: Path,
    sizes: Sequence[int],
    counts: list[int],
    waits: list[int | None],
    seconds: float,
    progress: Callable[[str], None],
) -> Iterator[tuple[str, Any]]:
    """Requests of `sizes` rows by `counts` lanes, by `waits` (batching delays in microseconds), by
    coroutines, and beside a thread of Python; `seconds` for each. One after the other, each with
    its name."""
    from recreplay.runtime.artifact import open_artifact
    from recreplay.runtime.dispatch import can_pack
    from recreplay.tools.load.beside import beside_python
    from recreplay.tools.load.coroutines import by_coroutine
    from recreplay.tools.load.queries import Queries
    from recreplay.tools.load.sizes import fixed

    opened = open_artifact(artifact)
    queries = Queries(opened.path, opened.manifest, fixed(max(sizes)))
    requests = {n: [queries.of(n) for _ in range(_TURNS)] for n in sizes}
    packs = can_pack(opened.manifest)
    if not packs:
        progress("requests of this model are not packed: no delay is measured")
        waits = [None]
    yield "lanes", by_lanes(artifact, requests, counts, seconds, progress)
    yield "batching", by_delay(artifact, requests, waits, seconds, progress)
    yield "coroutines", by_coroutine(artifact, requests, packs, seconds, progress)
    yield "beside", beside_python(artifact, requests, seconds, progress)


def by_lanes(
    path: Path, requests: Requests, counts: list[int], seconds: float, progress: Any
) -> list[dict[str, Any]]:
    """Requests a second of as many threads as lanes, each with a `run` at a time."""
    from recreplay.runtime import Runtime

    found = []
    for lanes in counts:
        with Runtime.load(path, lanes=lanes) as runtime:
            for rows, asked in requests.items():
                progress(f"{rows} rows on {lanes} lanes")
                rate = _rate(runtime, lanes, asked, seconds)
                found.append({"rows": rows, "lanes": lanes, "qps": round(rate, 1)})
    return found


def _rate(
    runtime: Runtime, threads: int, requests: Sequence[dict[str, Any]], seconds: float
) -> float:
    """Requests a second of so many threads. An error of one, or an interrupt, ends them all."""
    ended = threading.Event()

    def work() -> float:
        done, begun = 0, time.perf_counter()
        while (spent := time.perf_counter() - begun) < seconds and not ended.is_set():
            runtime.run(requests[done % len(requests)])
            done += 1
        return done / spent  # the last is answered when time is up

    import torch

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            futures = [pool.submit(work) for _ in range(threads)]
            return sum(future.result() for future in as_completed(futures))
        finally:
            ended.set()


def by_delay(
    path: Path, requests: Requests, waits: list[int | None], seconds: float, progress: Any
) -> list[dict[str, Any]]:
    """Requests a second with 64 under way, and the latency of one that is alone."""
    from recreplay.runtime import Runtime, Serving
    from recreplay.tools.bench.latency import Latency
    from recreplay.tools.load.coroutines import LONELY, PAUSE

    found = []
    for delay in waits:
        with Runtime.load(path, serving=Serving(lanes=2, max_delay_us=delay)) as runtime:
            for rows, asked in requests.items():
                progress(f"{rows} rows, delay {delay}")
                qps = _flood(runtime, asked, seconds)
                alone = []
                for at in range(LONELY):
                    begun = time.perf_counter_ns()
                    runtime.submit(asked[at % len(asked)]).result()
                    alone.append(time.perf_counter_ns() - begun)
                    time.sleep(PAUSE)
                took = Latency.from_ns(alone)
                item = {"rows": rows, "max_delay_us": delay, "qps": round(qps, 1)}
                found.append({**item, "alone_us_p50": took.p50, "alone_us_p95": took.p95})
    return found


def _flood(runtime: Any, requests: Sequence[dict[str, Any]], seconds: float) -> float:
    room = threading.Semaphore(64)
    answered = 0

    def done(future: Future[Any]) -> None:
        nonlocal answered
        answered += 1
        room.release()

    begun = time.perf_counter()
    sent = 0
    while time.perf_counter() - begun < seconds:
        room.acquire()
        runtime.submit(requests[sent % len(requests)]).add_done_callback(done)
        sent += 1
    counted, spent = answered, time.perf_counter() - begun
    for _ in range(64):
        room.acquire()
    return counted / spent


def _under_load(title: str, what: str, points: list[tuple[Any, dict[str, Any]]]) -> Table:
    """Points with the value of the column that they differ by."""
    return tables.table(
        title,
        ("rows>", what, "requests/s>", "alone p50 µs>", "p95>"),
        [
            (
                point["rows"],
                value,
                f"{point['qps']:,.0f}",
                tables.micros(point["alone_us_p50"]),
                tables.micros(point["alone_us_p95"]),
            )
            for value, point in points
        ],
    )


def _show(report: dict[str, Any]) -> None:
    batching = report["batching"]
    show(
        tables.table(
            f"{report['artifact']}: threads and lanes, each with a request at a time",
            ("rows>", "lanes>", "requests/s>"),
            [(i["rows"], i["lanes"], f"{i['qps']:,.0f}") for i in report["lanes"]],
        ),
        _under_load(
            "two lanes, 64 requests under way; and one alone",
            "delay µs>",
            [("-" if i["max_delay_us"] is None else i["max_delay_us"], i) for i in batching],
        ),
        _under_load(
            "64 coroutines of one event loop; and one alone",
            "way",
            [(i["way"], i) for i in report["coroutines"]],
        ),
        tables.table(
            "run on one lane, now and then",
            ("rows>", "beside it", "p50 µs>", "p95>"),
            [
                (
                    i["rows"],
                    "a thread that runs Python" if i["busy"] else "nothing",
                    tables.micros(i["us_p50"]),
                    tables.micros(i["us_p95"]),
                )
                for i in report["beside"]
            ],
        ),
    )
