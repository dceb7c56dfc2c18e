"""How fast coroutines of one event loop are answered, by `arun` and by a thread pool.

Each coroutine asks again once it was answered and the loop has gone round, as a service does that
waits for its sockets in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from recreplay.runtime import Runtime, Serving
from recreplay.tools.bench.latency import Latency

UNDER_WAY = 64  # coroutines
_LANES = 2
_POOL = "run in a thread pool"
PAUSE = 0.002  # seconds between requests where little arrives
LONELY = 300  # requests, each sent when the one before was answered

Requests = Mapping[int, Sequence[dict[str, Any]]]  # by their rows, to be asked in turns
Ask = Callable[[dict[str, Any]], Awaitable[Any]]


def by_coroutine(
    path: Path, requests: Requests, packs: bool, seconds: float, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Requests a second of 64 coroutines, and the latency of one that is alone, for each way to
    answer them: a pool of as many threads as lanes; threads of lanes alone; and as runtimes are
    loaded, with small requests on the thread of the loop. `packs`: whether a replay has room for
    several requests.
    """
    ways = {
        _POOL: Serving(lanes=_LANES),
        "arun by lanes' threads": Serving(lanes=_LANES, inline_us=0),
        "arun by lanes' threads, packed": Serving(lanes=_LANES, inline_us=0, max_delay_us=0),
        "arun": Serving(lanes=_LANES),
    }
    found = []
    for way, serving in ways.items():
        if serving.max_delay_us is not None and not packs:
            continue
        with Runtime.load(path, serving=serving) as runtime:
            for rows, asked in requests.items():
                progress(f"{rows} rows, coroutines, {way}")
                measured = _measure(runtime, way == _POOL, asked, seconds)
                found.append({"rows": rows, "way": way, **measured})
    return found


def _measure(
    runtime: Runtime, pooled: bool, requests: Sequence[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    if not pooled:
        return asyncio.run(_flood(runtime.arun, requests, seconds))
    with ThreadPoolExecutor(_LANES, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def ask(request: dict[str, Any]) -> Awaitable[Any]:
            return asyncio.get_running_loop().run_in_executor(pool, runtime.run, request)

        return asyncio.run(_flood(ask, requests, seconds))


async def _flood(ask: Ask, requests: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    answered = 0
    begun = time.perf_counter()
    end = begun + seconds

    async def client(at: int) -> None:
        nonlocal answered
        while time.perf_counter() < end:
            await ask(requests[at % len(requests)])
            answered, at = answered + 1, at + 1
            await asyncio.sleep(0)

    await asyncio.gather(*(client(at) for at in range(UNDER_WAY)))
    qps = answered / (time.perf_counter() - begun)  # the last are answered when time is up
    alone = []
    for at in range(LONELY):
        asked = time.perf_counter_ns()
        await ask(requests[at % len(requests)])
        alone.append(time.perf_counter_ns() - asked)
        await asyncio.sleep(PAUSE)
    took = Latency.from_ns(alone)
    return {"qps": round(qps, 1), "alone_us_p50": took.p50, "alone_us_p95": took.p95}
