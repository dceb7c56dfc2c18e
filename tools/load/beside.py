"""How long `run` takes beside a thread that runs Python, as the features of a service do.

Such a thread gives the interpreter's lock away every 5 ms, or when it sleeps. A replay that lets go
of the lock while it computes has to wait that long to have it back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from recreplay.runtime import Runtime
from recreplay.tools.bench.latency import Latency
from recreplay.tools.load.coroutines import Requests

_WARM_UP = 0.1  # of the requests
_PAUSE = 0.001  # seconds between requests


def beside_python(
    path: Path, requests: Requests, seconds: float, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Latency of requests of each size, with nothing beside them and with a thread that counts."""
    found = []
    with Runtime.load(path) as runtime:
        for rows, asked in requests.items():
            for busy in (False, True):
                progress(f"{rows} rows, {'beside a thread of Python' if busy else 'alone'}")
                with _counting() if busy else nullcontext():
                    took = _latency(runtime, asked, seconds)
                found.append({"rows": rows, "busy": busy, "us_p50": took.p50, "us_p95": took.p95})
    return found


def _latency(runtime: Runtime, requests: Sequence[dict[str, Any]], seconds: float) -> Latency:
    spent: list[int] = []
    end = time.perf_counter() + seconds
    while not spent or time.perf_counter() < end:
        time.sleep(_PAUSE)
        begun = time.perf_counter_ns()
        runtime.run(requests[len(spent) % len(requests)])
        spent.append(time.perf_counter_ns() - begun)
    return Latency.from_ns(spent[int(_WARM_UP * len(spent)) :])


@contextmanager
def _counting() -> Iterator[None]:
    ended = threading.Event()

    def count() -> None:
        while not ended.is_set():
            sum(range(1000))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
