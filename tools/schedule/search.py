"""The search of DeepRecSched over settings, simulated, and the best of it measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.dispatch import can_pack
from recreplay.runtime.errors import RecReplayError
from recreplay.tools.load.arrivals import Arrivals
from recreplay.tools.load.queries import Queries
from recreplay.tools.load.sizes import Sizes, largest
from recreplay.tools.schedule.climb import RateClimb, hill_climb, rate_grid
from recreplay.tools.schedule.execute import execute
from recreplay.tools.schedule.latency_table import LatencyTable
from recreplay.tools.schedule.measure import measure
from recreplay.tools.schedule.setting import Setting
from recreplay.tools.schedule.simulate import Simulation

CHUNKS = (512, 384, 256, 192, 128, 96, 64, 48, 32)  # as DeepRecSys tries them
THRESHOLDS = (96, 128, 192, 256, 384, 512)
SIMULATED = 160  # windows
_DRAWN = 4096  # sizes, to see what an accelerator takes of them
_BEST = 2  # simulated settings that are measured beside the baseline


@dataclass(frozen=True)
class Workload:
    """What queries are like, and what is asked of the server."""

    sizes: Sizes
    arrivals: Arrivals
    target_ms: float
    seed: int = 0


class Search:
    """Searches settings for one artifact on this machine."""

    def __init__(
        self,
        path: Path,
        workload: Workload,
        cores: int,
        delays_us: Sequence[int],
        accelerator: LatencyTable | None,
        progress: Callable[[str], None],
    ) -> None:
        artifact = open_artifact(path)
        self._path, self._load, self._progress = artifact.path, workload, progress
        self._accelerator = accelerator
        self._buckets = [b.size for b in artifact.manifest.buckets]
        self._users = artifact.manifest.users
        self._cuts = artifact.manifest.row_mask is None
        self._queries = Queries(artifact.path, artifact.manifest, workload.sizes, workload.seed)
        self._largest, self._mean = largest(workload.sizes), self._queries.mean_rows()
        self._cores, self._delays = cores, tuple(delays_us)
        if not can_pack(artifact.manifest):
            progress("requests of this model are not packed: no delay is tried")
            self._delays = ()
        rows = sorted({*_ends(self._buckets), self._largest})
        progress(f"latencies of {len(rows)} sizes on 1 to {cores} lanes")
        self.table, self.host = measure(artifact.path, self._queries, rows, cores)
        self._executed = False
        self.simulated: dict[Setting, float] = {}
        self.measured: dict[Setting, float] = {}
        self.notices: list[str] = []  # of what is not as measured as was asked
        # The best window of each setting: its p95 in seconds, and the rate it had.
        self._simulated_best: dict[Setting, tuple[float, float]] = {}
        self._measured_best: dict[Setting, tuple[float, float]] = {}

    def baseline(self) -> Setting:
        """What is compared with: every query cut over all cores by the largest one, no batching.
        Whole, where rows of a query are compared."""
        chunk = -(-self._largest // self._cores) if self._cuts else None
        return Setting(self._cores, chunk_rows=chunk)

    def simulate(self, setting: Setting) -> float:
        """Queries a second of one setting; each is simulated once."""
        if setting not in self.simulated:
            climb = self._climb(setting, self._estimate(setting) / 2)
            simulation = Simulation(
                setting,
                self.table,
                self.host,
                self._load.sizes,
                self._load.arrivals,
                climb,
                self._buckets[-1],
                self._accelerator,
                self._load.seed,
                self._users,
            )
            self.simulated[setting] = found = simulation.run(SIMULATED)
            if climb.best_window is not None:
                self._simulated_best[setting] = climb.best_window
            self._progress(f"simulated {setting.describe()}: {found:.1f} queries/s")
        return self.simulated[setting]

    def climb(self) -> Setting:
        """The best simulated setting: chunk first, then lanes and batching, then the threshold."""
        self.simulate(self.baseline())
        chunks = [None, *(c for c in CHUNKS if c < self._largest and self._cuts)]
        start = [Setting(self._cores, chunk_rows=chunk) for chunk in chunks]
        best, _ = hill_climb(start, self.simulate, patience=3)
        lanes = [replace(best, lanes=n) for n in range(self._cores, 0, -1)]
        best, _ = hill_climb(lanes, self.simulate)
        delays = [best, *(replace(best, max_delay_us=d) for d in self._delays)]
        best, _ = hill_climb(delays, self.simulate, patience=2)
        if self._accelerator is not None:
            thresholds = [best, *(replace(best, threshold=t) for t in THRESHOLDS)]
            best, _ = hill_climb(thresholds, self.simulate, patience=len(THRESHOLDS))
        return max(self.simulated, key=lambda s: self.simulated[s])

    def execute(self, setting: Setting, updates: int, seconds: float) -> None:
        """Queries a second of one setting, with real queries on this machine; none where time was
        up before a single window was complete."""
        # From below: what an overload leaves waiting would spoil the windows that follow it.
        climb = self._climb(setting, max(self.simulate(setting), 1e-6) * 0.6)
        found = execute(
            self._path,
            setting,
            self._queries,
            self._load.arrivals,
            climb,
            updates,
            seconds,
            self._load.seed + 1,
        )
        self._executed = True
        if climb.windows < updates:
            self.notices.append(
                f"{setting.describe()}: {climb.windows} of {updates} windows of queries were "
                f"complete in {seconds:g} s, which "
                + ("measures nothing" if not climb.windows else "may be too few to find its rate")
                + "; give more --seconds"
            )
        if climb.best_window is None:
            return
        self.measured[setting] = found
        self._measured_best[setting] = climb.best_window
        self._progress(f"measured {setting.describe()}: {found:.1f} queries/s")

    def candidates(self) -> Iterator[Setting]:
        """The baseline, and the settings that simulate best: what is worth measuring."""
        base = self.baseline()
        yield base
        ranked = sorted(self.simulated, key=lambda s: -self.simulated[s])
        yield from [s for s in ranked if s != base and s.threshold is None][:_BEST]

    def choose(self, simulated: Setting) -> Setting:
        """What to serve with: the best that was measured; the best simulated one where none was,
        or where it plans for an accelerator. Raises where that holds the target at no rate, since
        a server with such a deadline would refuse nearly every request."""
        if not self._executed or simulated.threshold is not None:
            values, seen, how, chosen = self.simulated, self._simulated_best, "simulated", simulated
        else:
            values, seen, how = self.measured, self._measured_best, "measured"
            chosen = max(values, key=lambda s: values[s], default=simulated)
        if values.get(chosen, 0.0) > 0:
            return chosen
        target = f"no setting holds p95 <= {self._load.target_ms:g} ms"
        if not seen:
            raise RecReplayError(
                f"{target}: no window of queries was completed; nothing was written. Give more "
                "--seconds"
            )
        best = min(seen, key=lambda s: seen[s])
        p95, rate = seen[best]
        if p95 * 1e3 <= self._load.target_ms:
            raise RecReplayError(
                f"{target}: single windows of queries did, the best with {p95 * 1e3:.4g} ms at "
                f"{rate:.4g} queries a second with {best.describe()}, but most did not; nothing "
                "was written. Give more --windows and --seconds, or raise --target-ms"
            )
        raise RecReplayError(
            f"{target}: the lowest p95 that was {how} is {p95 * 1e3:.4g} ms, at {rate:.4g} queries "
            f"a second with {best.describe()}; nothing was written. Raise --target-ms, or plan for "
            "smaller --sizes"
        )

    def mean_ms(self) -> float:
        """Median time of one mean query on one lane, in milliseconds."""
        return self.table.median(self._mean, 1) * 1e3

    def mean_rows(self) -> int:
        return self._mean

    def limit(self) -> float:
        """Queries a second of all cores at work without a pause, on the size that suits them best,
        or of Python at work on nothing else: what a setting can hold at most."""
        sizes = [n for n in self.table.rows if n <= self._buckets[-1]]
        fastest = max(n / self.table.median(n, self._cores) for n in sizes)
        return min(self._cores * fastest / self._mean, 1 / (self.host.send + self.host.join))

    def _estimate(self, setting: Setting) -> float:
        """The same of one setting, on what it makes of mean queries."""
        if self._accelerator is not None and setting.threshold is not None:
            return self._beside(self._accelerator, setting.threshold, self._of_lanes(setting))
        return self._of_lanes(setting)

    def _beside(self, accelerator: LatencyTable, threshold: int, lanes: float) -> float:
        """Queries a second of lanes that hold `lanes` of them alone, where the accelerator takes
        those of `threshold` rows and more, one after the other."""
        draw = np.random.default_rng(0)
        drawn = np.array([self._load.sizes(draw) for _ in range(_DRAWN)])
        taken = drawn[drawn >= threshold]
        spent = sum(accelerator.median(int(n), 1) for n in taken) / _DRAWN
        left = 1 - taken.sum() / drawn.sum()  # of the rows, for the lanes
        limits = [lanes / left if left else float("inf"), 1 / spent if spent else float("inf")]
        return min(*limits, 1 / self.host.send)

    def _of_lanes(self, setting: Setting) -> float:
        mean = self._mean
        if setting.max_delay_us is not None:
            return self.limit()
        step = setting.chunk_rows or mean
        parts = [min(step, mean - at) for at in range(0, mean, step)]
        each = sum(self.table.median(n, setting.lanes) for n in parts)
        python = self.host.send + self.host.hold * len(parts)
        return min(setting.lanes / each, 1 / python)

    def _climb(self, setting: Setting, start: float) -> RateClimb:
        most = self._estimate(setting)  # of medians, so a little may be held above it
        return RateClimb(rate_grid(most / 12, most * 1.1), self._load.target_ms / 1e3, start)


def _ends(buckets: Sequence[int]) -> set[int]:
    """The fewest and the most rows that are padded to each bucket, and the bucket itself, which is
    filled in another way: between them latency is a line, and not from one bucket to the next."""
    found = set(buckets)
    for below, size in pairwise([0, *buckets]):
        found |= {below + 1, max(below + 1, size - 1)}
    return found


def error_percent(simulated: float, measured: float) -> float | None:
    """How far the simulator is off, of what was measured."""
    return None if not measured else round(100 * (simulated / measured - 1), 1)


def report(search: Search, workload: Workload, chosen: Setting) -> dict[str, Any]:
    base = search.baseline()
    measured = search.measured
    speedup = (
        round(measured[chosen] / measured[base], 3)
        if measured.get(base) and chosen in measured
        else None
    )
    return {
        "target_ms_p95": workload.target_ms,
        "mean_rows": search.mean_rows(),
        "mean_query_ms": round(search.mean_ms(), 4),
        "baseline": base.to_json(),
        "chosen": chosen.to_json(),
        "qps_limit": round(search.limit(), 2),
        "qps_baseline": measured.get(base),
        "qps_chosen": measured.get(chosen),
        "speedup": speedup,
        "settings": [
            {
                **setting.to_json(),
                "simulated_qps": round(qps, 2),
                "measured_qps": round(measured[setting], 2) if setting in measured else None,
                "simulator_error_percent": error_percent(qps, measured.get(setting, 0.0)),
            }
            for setting, qps in search.simulated.items()
        ],
        "latency_table": search.table.to_json(),
        "host": search.host.to_json(),
    }
