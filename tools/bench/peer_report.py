"""What `recreplay bench --peers` says: one table a model, contenders side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType

from recreplay.tools import tables
from recreplay.tools.bench.report import machine

KIND = "recreplay-bench-peers"
_SIDE_BY_SIDE = 3  # batch sizes that fit beside each other


def render(report: dict[str, Any]) -> Iterator[RenderableType]:
    """Tables of a report that `recreplay.tools.bench.against_peers` made."""
    for result in report["results"]:
        yield from _model(result)
    floor = report["floor"]
    cold = (
        f"Caches emptied before every call ({tables.size(report['evicted_bytes'])} written). "
        if report["cold"]
        else f"A turn is {report['calls_of_a_turn']} calls, the first of which does not count. "
    )
    link = floor.get("link_bytes_per_us")
    sent = "" if link is None else f", {link / 1e3:.1f} GB/s (pinned memory to the device)"
    yield (
        f"{report['runs']} rounds of all contenders in turn, each round begun by another, over "
        f"{report['requests']} requests; one thread; arrays on the host in and out; answers equal "
        f"eager's. {cold}Medians in microseconds. Over ours: how many times longer than ours, "
        "ratio of the medians, and the middle half of the rounds' ratios.\n"
        "Floor: one call, and the slowest of what nobody can avoid (bytes of memory, operations, "
        "on CUDA bytes between host and device), "
        f"at {floor['bytes_per_us'] / 1e3:.1f} GB/s (copy beyond any cache), "
        f"{floor['flops_per_us'] / 1e3:.1f} GFLOP/s (matrix product){sent}, "
        f"{floor['call_us']:.2f} µs (call). Data that stays in a cache can be faster than that.\n"
        f"{machine(report['stamp'])}"
    )
    for peer in report["peers"]:
        yield f"  {peer['name']}: {_state(peer)}"


def _model(result: dict[str, Any]) -> Iterator[RenderableType]:
    arguments = ", ".join(f"{k}={v!r}" for k, v in result["arguments"].items())
    title: str | None = (
        f"{result['name']}({arguments}): captured in {result['capture_seconds']:.1f} s "
        f"({result['compiler']}, {result['strategy']})"
    )
    batches = result["batches"]
    for start in range(0, len(batches), _SIDE_BY_SIDE):
        shown = batches[start : start + _SIDE_BY_SIDE]
        names = list(dict.fromkeys(c["name"] for b in shown for c in b["contenders"]))
        columns = [c for b in shown for c in (f"batch {b['batch']}>", "over ours>")]
        rows = [[name, *(cell for b in shown for cell in _cells(b, name))] for name in names]
        floors = [cell for b in shown for cell in _floor_cells(b["floor"])]
        yield tables.table(title, ["", *columns], [*rows, ["floor", *floors]])
        title = None
    for b in batches:
        spread = b["ours_to_best_peer"]
        yield (
            f"  batch {b['batch']}: ours takes {spread['ratio']:.2f} of {b['best_peer']}, the "
            f"best peer ({spread['p25']:.2f}-{spread['p75']:.2f}), and "
            f"{b['floor']['ours_to_floor']:.2f} of the floor"
        )
    for name, why in result["absent"].items():
        yield f"  {name} is absent: {why}"
    yield ""


def _cells(batch: dict[str, Any], name: str) -> tuple[str, str]:
    for contender in batch["contenders"]:
        if contender["name"] == name:
            over = contender["to_ours"]
            return (
                tables.micros(contender["latency_us"]["p50"]),
                f"{tables.times(over['ratio'])} {over['p25']:.2f}-{over['p75']:.2f}",
            )
    return "-", "-"


def _floor_cells(floor: dict[str, Any]) -> tuple[str, str]:
    return tables.micros(floor["us"]), f"{1 / floor['ours_to_floor']:.2f}x, {floor['bound']}"


def _state(peer: dict[str, Any]) -> str:
    return peer["about"] if peer["absent"] is None else f"absent: {peer['absent']}"
