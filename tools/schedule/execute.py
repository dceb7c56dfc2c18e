"""The same search with real queries on a runtime of this machine."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

from recreplay.runtime import Runtime
from recreplay.tools.load.arrivals import Arrivals, draw_gap
from recreplay.tools.load.generator import Sender
from recreplay.tools.load.queries import Queries
from recreplay.tools.schedule.climb import RateClimb
from recreplay.tools.schedule.setting import Setting


def execute(
    path: Path,
    setting: Setting,
    queries: Queries,
    arrivals: Arrivals,
    climb: RateClimb,
    updates: int,
    seconds: float,
    seed: int = 0,
) -> float:
    """Queries a second that hold the target, after `updates` windows or `seconds` of load.

    Raises what a query does: of a server that fails there is nothing to plan, and its queue is so
    long that it refuses none.
    """
    draw = np.random.default_rng(seed)
    window: list[float] = []
    seen = 0
    errors: list[BaseException] = []
    lock = threading.Lock()

    def done(latency: float, error: BaseException | None) -> None:
        nonlocal seen
        with lock:
            if error is not None:
                errors.append(error)
                return
            window.append(latency)
            if len(window) >= climb.window:
                climb.observe(float(np.percentile(window, 95)))
                window.clear()
                seen += 1

    with Runtime.load(path, serving=setting.open_ended()) as runtime:
        sender = Sender(runtime, done)
        for _ in range(8):
            runtime.submit(queries.next()).result()
        due = begun = time.perf_counter()
        while seen < updates and due - begun < seconds and not errors:
            due += draw_gap(arrivals, climb.rate, draw)
            sender.send(queries.next(), due)
        sender.wait()
    if errors:
        raise errors[0]
    return climb.achieved()
