"""Result files as lines of Markdown tables, by the kind of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

_TITLES = {
    "dlrm": "DLRM, 26 tables × 20 lookups",
    "streamrec": "40 features with attention pooling",
    "ncf": "NCF",
    "wide_deep": "Wide & Deep",
    "mt_wide_deep": "MT-WND, 8 tasks",
    "dlrm_rmc1": "DLRM-RMC1",
    "dlrm_rmc2": "DLRM-RMC2",
    "dlrm_rmc3": "DLRM-RMC3",
    "din": "DIN, 250 behaviours",
    "dien": "DIEN",
    "microrec_47": "MicroRec, 47 tables",
    "microrec_98": "MicroRec, 98 tables",
    "two_tower": "Two towers, jagged",
    "two_tower_user_side": "the same, the user once a request",
    "rm_small": "RM-small",
    "rm_med": "RM-med",
    "rm_large": "RM-large",
    "mmoe": "MMoE, 8 experts with batch normalisation",
    "dcn_v2": "DCNv2, 26 features",
    "catalogue": "Cosines of a catalogue of 20,000 items",
    "retrieval": "the best 100 of them",
    "histories": "Three histories of 50 items, pooled",
    "sequence": "SASRec, 50 items, two blocks",
    "recurrent": "GRU4Rec, 20 items",
    "interests": "ComiRec, 50 items, four interests",
    "reranker": "PRM, lists of 30 items, two blocks",
    "fields": "Layers for each of 20 fields",
    "auto_int": "AutoInt, 20 fields",
    "x_deep_fm": "xDeepFM, 20 fields",
    "wukong": "Wukong, 26 features and three layers",
    "rank_mixer": "RankMixer, 16 tokens and two blocks",
    "pep_net": "PEPNet, four tasks with gates",
    "star": "STAR, five domains",
    "hstu": "HSTU, 64 items and three layers",
    "one_trans": "OneTrans, 64 items and eight tokens",
    "longer": "LONGER, 256 items",
    "trans_act": "TransAct, 100 actions and two blocks",
    "sdim": "SDIM, 512 items",
    "sdm": "SDM, a packed session of 20 items",
    "pnn": "PNN, pairs of 26 fields",
}
_PEERS = {
    "onnxruntime_gather": "ONNX Runtime",
    "aotinductor": "AOTInductor",
    "compile": "compile",
    "max_autotune": "max-autotune",
    "eager": "eager",
}
# Of `tests/emulated/launches.py`: compiler and way of the columns.
_LAUNCHES = {
    ("eager", "as it is"): "operator by operator",
    ("inductor", "as it is"): "packages",
    ("inductor", "stacked"): "packages, rewritten",
    ("inductor", "stacked, one stream"): "the same, one stream",
}
_LAUNCH_ROWS = 64

Row = Sequence[str]


def _table(head: Row, rows: Iterator[Row]) -> list[str]:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _title(result: dict[str, Any]) -> str:
    name: str = result["name"]
    return _TITLES.get(name, name)


def _each(batches: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], str]) -> str:
    return " / ".join(value(batch) for batch in batches)


def _sizes(report: dict[str, Any]) -> str:
    return _each(report["results"][0]["batches"], lambda b: str(b["batch"]))


def _against_peers(report: dict[str, Any]) -> list[str]:
    def contender(batch: dict[str, Any], name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(c for c in batch["contenders"] if c["name"] == name)
        return found

    def best(batch: dict[str, Any]) -> str:
        times = 1 / batch["ours_to_best_peer"]["ratio"]
        return f"{times:.2f} {_PEERS[batch['best_peer']]}"

    sizes = _sizes(report)
    return _table(
        ("model", f"ours at {sizes}, µs", "× eager", "× the best peer"),
        (
            (
                _title(result),
                _each(
                    result["batches"], lambda b: f"{contender(b, 'ours')['latency_us']['p50']:,.0f}"
                ),
                _each(
                    result["batches"], lambda b: f"{contender(b, 'eager')['to_ours']['ratio']:.1f}"
                ),
                _each(result["batches"], best),
            )
            for result in report["results"]
        ),
    )


def _against_eager(report: dict[str, Any]) -> list[str]:
    return _table(
        ("model", f"ours at {_sizes(report)}, µs", "× eager", "captured in, s"),
        (
            (
                _title(result),
                _each(result["batches"], lambda b: f"{b['replay_us']['p50']:,.0f}"),
                _each(result["batches"], lambda b: f"{b['speedup']:.1f}"),
                f"{result['capture_seconds']:.0f}",
            )
            for result in report["results"]
        ),
    )


def _onnx(report: dict[str, Any]) -> list[str]:
    return _table(
        ("ONNX file", f"ours at {_sizes(report)}, µs", "× ONNX Runtime"),
        (
            (
                _title(result),
                _each(result["batches"], lambda b: f"{b['replay_us']['p50']:,.0f}"),
                _each(result["batches"], lambda b: f"{b['speedup']:.1f}"),
            )
            for result in report["results"]
        ),
    )


def _overhead(report: dict[str, Any]) -> list[str]:
    def us(latency: dict[str, Any]) -> str:
        return f"{latency['p50']:.1f}"

    return _table(
        (
            "model",
            f"arrays at {_sizes(report)}, µs",
            "torch tensors, µs",
            "borrowed, µs",
        ),
        (
            (
                f"{_title(result)}, {result['inputs']} inputs",
                _each(result["batches"], lambda b: us(b["overhead_us"])),
                _each(result["batches"], lambda b: f"{b['tensors_overhead_us']['p50']:.1f}"),
                _each(result["batches"], lambda b: us(b["borrowed"]["overhead_us"])),
            )
            for result in report["results"]
        ),
    )


def _precision(report: dict[str, Any]) -> list[str]:
    names = [p["name"] for p in report["results"][0]["batches"][0]["precisions"]][1:]

    def found(batch: dict[str, Any], name: str) -> dict[str, Any]:
        precision: dict[str, Any] = next(p for p in batch["precisions"] if p["name"] == name)
        return precision

    def times(result: dict[str, Any], name: str) -> str:
        return _each(result["batches"], lambda b: f"{found(b, name)['to_float32']['ratio']:.2f}")

    def error(name: str) -> str:
        batches = (batch for result in report["results"] for batch in result["batches"])
        return f"{max(found(batch, name)['error'] for batch in batches):.4f}"

    def rows() -> Iterator[Row]:
        for result in report["results"]:
            yield (_title(result), *(times(result, name) for name in names))
        yield ("largest error", *(error(name) for name in names))

    return _table((f"× float32 at {_sizes(report)}", *names), rows())


def _cartesian(report: dict[str, Any]) -> list[str]:
    def pair(values: dict[str, int], value: Callable[[int], str]) -> str:
        return " → ".join(value(n) for n in values.values())

    def p50(result: dict[str, Any], name: str) -> str:
        return _each(result["batches"], lambda b: f"{b['latency_us'][name]['p50']:,.0f}")

    return _table(
        (
            "model",
            "tables",
            "weights, GB",
            f"separate at {_sizes(report)}, µs",
            "Cartesian, µs",
            "× separate",
        ),
        (
            (
                _title(result),
                pair(result["tables"], str),
                pair(result["weight_bytes"], lambda n: f"{n / 1e9:.2f}"),
                *(p50(result, name) for name in result["tables"]),
                _each(result["batches"], lambda b: f"{b['to_separate']['ratio']:.2f}"),
            )
            for result in report["results"]
        ),
    )


def _scaling(report: dict[str, Any]) -> list[str]:
    def ends(points: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], str]) -> str:
        return f"{value(points[0])} to {value(points[-1])}"

    return _table(
        ("what grows", "from, to", "capture, s", "exponent", "memory of a lane, KB"),
        (
            (
                result["name"],
                ends(result["points"], lambda p: str(p["value"])),
                ends(result["points"], lambda p: f"{p['total_seconds']:.1f}"),
                f"{result['exponents']['total_seconds']:.2f}",
                ends(result["points"], lambda p: f"{p['lane_bytes'] / 1000:,.0f}"),
            )
            for result in report["results"]
        ),
    )


def _saturate(report: dict[str, Any]) -> list[str]:
    rows = sorted({point["rows"] for point in report["lanes"]})

    def rates(points: Sequence[dict[str, Any]], key: str, value: Any) -> Iterator[str]:
        for n in rows:
            found = next(p for p in points if p["rows"] == n and p[key] == value)
            yield f"{found['qps']:,.0f}"

    def lines() -> Iterator[Row]:
        for lanes in dict.fromkeys(point["lanes"] for point in report["lanes"]):
            yield (
                f"`run` on {lanes} lane{'s'[: lanes > 1]}",
                *rates(report["lanes"], "lanes", lanes),
            )
        for delay in dict.fromkeys(point["max_delay_us"] for point in report["batching"]):
            what = "each by itself" if delay is None else f"packed within {delay} µs"
            yield (f"`submit`, {what}", *rates(report["batching"], "max_delay_us", delay))
        for way in dict.fromkeys(point["way"] for point in report["coroutines"]):
            yield (f"coroutines, {way}", *rates(report["coroutines"], "way", way))
        for busy, what in ((False, "alone"), (True, "beside a thread that runs Python")):
            found = [p for p in report["beside"] if p["busy"] == busy]
            yield (
                f"µs of a `run` {what}, p50 / p95",
                *(f"{p['us_p50']:,.0f} / {p['us_p95']:,.0f}" for p in found),
            )

    return _table(("requests a second", *(f"of {n} rows" for n in rows)), lines())


def _schedule(report: dict[str, Any]) -> list[str]:
    def rows() -> Iterator[Row]:
        singles = {point["artifact"]: point for point in report["single"]}
        for point in report["published"]:
            single = singles[point["artifact"]]
            yield (
                _title({"name": point["artifact"].removesuffix(".rr")}),
                f"{point['target_ms_p95']:g}",
                f"{point['speedup']:.2f}",
                f"{point['qps_limit'] / point['qps_baseline']:.2f}",
                f"{_error(point):.0f}",
                f"{single['speedup']:.2f}",
                f"{_error(single):.0f}",
            )

    return _table(
        (
            "model",
            "p95 target, ms",
            "× baseline",
            "at most",
            "simulator error, %",
            "one item: × baseline",
            "simulator error, %",
        ),
        rows(),
    )


def _funnel(report: dict[str, Any]) -> list[str]:
    def milliseconds(item: dict[str, Any]) -> str:
        return " / ".join(f"{item['latency_us'][p] / 1e3:.1f}" for p in ("p50", "p95"))

    rates = [load["rate"] for load in report["funnels"][0]["loads"]]
    return _table(
        (
            "models, and rows that each lets through",
            f"NDCG@{report['top']}, %",
            "p50 / p95, ms",
            "× the last alone",
            *(f"p95 at {rate:g} a second" for rate in rates),
        ),
        (
            (
                item["name"],
                f"{100 * item['ndcg']:.2f}",
                milliseconds(item),
                f"{item['speedup']:.2f}",
                *(f"{load['latency_ms']['p95']:.0f}" for load in item["loads"]),
            )
            for item in sorted(report["funnels"], key=lambda item: -item["latency_us"]["p50"])
        ),
    )


def _error(point: dict[str, Any]) -> float:
    """The largest error of the simulator over the settings that were also run."""
    errors: list[float | None] = [s["simulator_error_percent"] for s in point["settings"]]
    return max(abs(error) for error in errors if error is not None)


def _launches(report: dict[str, Any]) -> list[str]:
    rows = [row for row in report["rows"] if row["bucket"] == _LAUNCH_ROWS]
    found = {(row["model"], row["compiler"], row["way"]): row for row in rows}
    models = [
        m
        for m in dict.fromkeys(row["model"] for row in rows)
        if (m, "inductor", "stacked") in found
    ]

    def cell(row: dict[str, Any]) -> str:
        streams = f"{row['streams']} stream{'s'[: row['streams'] > 1]}"
        return f"{row['nodes'] - 2}, {row['chain']} ({streams})"  # without the copies up and down

    return _table(
        ("model", *_LAUNCHES.values()),
        (
            (_title({"name": model}), *(cell(found[model, *way]) for way in _LAUNCHES))
            for model in models
        ),
    )


RENDERERS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "recreplay-bench-peers": _against_peers,
    "recreplay-bench": _against_eager,
    "recreplay-bench-onnx": _onnx,
    "recreplay-bench-overhead": _overhead,
    "recreplay-bench-precision": _precision,
    "recreplay-bench-cartesian": _cartesian,
    "recreplay-bench-scaling": _scaling,
    "recreplay-saturate": _saturate,
    "recreplay-schedule": _schedule,
    "recreplay-funnel": _funnel,
    "launches": _launches,
}
