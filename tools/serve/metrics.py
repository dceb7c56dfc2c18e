"""Prometheus metrics: Triton's names where they mean the same, and ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from recreplay.runtime import Runtime
from recreplay.runtime.spec import total_bytes
from recreplay.tools.serve.service import Service

_LABELS = ("model", "version")
# Name, help, key in `Runtime.stats()`.
_OURS = (
    ("recreplay_padded_rows", "Rows of padding that were replayed", ("padded_rows",)),
    ("recreplay_split_requests", "Requests above the largest bucket", ("split_requests",)),
    ("recreplay_portioned_requests", "Requests replayed in parts", ("portioned_requests",)),
    ("recreplay_clamped_ids", "Ids out of range that were clamped", ("clamped_ids",)),
    ("recreplay_inline_requests", "Requests answered where they came", ("queue", "inline")),
    ("recreplay_packed_requests", "Requests that shared a replay", ("queue", "packed")),
    ("recreplay_cut_requests", "Requests that were cut into chunks", ("queue", "cut")),
    ("recreplay_overloaded", "Requests refused by a full queue", ("queue", "overloaded")),
    ("recreplay_deadline_exceeded", "Requests that waited too long", ("queue", "expired")),
    ("recreplay_refreshes", "Writes of rows or weights", ("refreshes",)),
    ("recreplay_lanes_rebuilt", "Lanes made anew after a failure", ("lanes", "rebuilt")),
    ("recreplay_lanes_retired", "Lanes lost for good", ("lanes", "retired")),
    (
        "nv_inference_count",
        "Rows inferred (does not include cached)",
        ("rows",),
    ),
    ("nv_inference_queue_duration_us", "Time in queue, microseconds", ("queue", "queue_ns")),
    (
        "nv_inference_compute_infer_duration_us",
        "Time on lanes, microseconds",
        ("queue", "replay_ns"),
    ),
)


class ServiceCollector(Collector):
    """Reads the counters when it is asked; nothing is counted twice."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Any]:
        yield from self._requests()
        stats = self._service.stats()
        for name, text, path in _OURS:
            family = CounterMetricFamily(name, text, labels=_LABELS)
            for key, found in stats.items():
                value = found
                for part in path:
                    value = value[part]
                scale = 1000 if path[-1].endswith("_ns") else 1
                family.add_metric(key, float(value) / scale)  # type: ignore[arg-type]
            yield family
        yield from _replays(stats)
        yield from _shape(self._service.live())

    def _requests(self) -> Iterator[Any]:
        counts = self._service.counts()
        for name, text, field, scale in (
            ("nv_inference_request_success", "Successful requests", "success", 1),
            ("nv_inference_request_failure", "Failed requests", "failed", 1),
            ("nv_inference_request_duration_us", "Request time, microseconds", "success_ns", 1000),
        ):
            family = CounterMetricFamily(name, text, labels=_LABELS)
            for key, one in counts.items():
                family.add_metric(key, getattr(one, field) / scale)
            yield family
        pending = GaugeMetricFamily(
            "nv_inference_pending_request_count", "Requests under way", labels=_LABELS
        )
        for key, one in counts.items():
            pending.add_metric(key, one.pending)
        yield pending


def _replays(stats: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Any]:
    total = CounterMetricFamily("nv_inference_exec_count", "Replays", labels=_LABELS)
    family = CounterMetricFamily(
        "recreplay_replays", "Replays by bucket", labels=(*_LABELS, "bucket")
    )
    for key, found in stats.items():
        total.add_metric(key, sum(found["replays"].values()))
        for size, count in found["replays"].items():
            family.add_metric((*key, str(size)), count)
    yield total
    yield family


def _shape(live: dict[tuple[str, str], Runtime]) -> Iterator[Any]:
    """What does not change while a version lives, but for its lanes."""
    lanes = GaugeMetricFamily("recreplay_lanes", "Lanes that serve", labels=_LABELS)
    size = GaugeMetricFamily(
        "recreplay_graph_bytes", "Bytes of the buffers of all lanes", labels=_LABELS
    )
    fallback = GaugeMetricFamily(
        "recreplay_fallback", "What capture did otherwise than asked", labels=(*_LABELS, "reason")
    )
    for key, runtime in live.items():
        manifest = runtime.manifest
        alive = runtime.lanes_alive()
        each = sum(
            max(total_bytes(getattr(b, kind)) for b in manifest.buckets)
            for kind in ("inputs", "buffers", "outputs")
        )
        lanes.add_metric(key, alive)
        size.add_metric(key, each * alive)
        for notice in manifest.notices:
            fallback.add_metric((*key, notice), 1)
    yield lanes
    yield size
    yield fallback
