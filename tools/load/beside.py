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

import numpy as np

from recreplay.runtime import Runtime
from recreplay.tools.load.queries import fixed_queries

_WARM_UP = 0.1  # of the requests
_PAUSE = 0.001  # seconds between requests


def beside_python(
    path: Path, sizes: Sequence[int], seconds: float, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Latency of requests of each size, with nothing beside them and with a thread that counts."""
    found = []
    with Runtime.load(path) as runtime:
        for rows in sizes:
            requests = fixed_queries(runtime, rows)
            for busy in (False, True):
                progress(f"{rows} rows, {'beside a thread of Python' if busy else 'alone'}")
                with _counting() if busy else nullcontext():
                    p50, p95 = _latency(runtime, requests, seconds)
                found.append({"rows": rows, "busy": busy, "us_p50": p50, "us_p95": p95})
    return found


def _latency(
    runtime: Runtime, requests: Sequence[dict[str, Any]], seconds: float
) -> tuple[float, float]:
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while not spent or time.perf_counter() < end:
        time.sleep(_PAUSE)
        begun = time.perf_counter()
        runtime.run(requests[len(spent) % len(requests)])
        spent.append((time.perf_counter() - begun) * 1e6)
    counted = spent[int(_WARM_UP * len(spent)) :]
    p50, p95 = np.percentile(counted, [50, 95]).round(1).tolist()
    return p50, p95


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
