"""`recreplay bench model.onnx`: replay against ONNX Runtime on the same file.

One process, one thread each, in turns on rotating requests; what both answer is compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import RenderableType

from recreplay.runtime.errors import CaptureError
from recreplay.tools import strict, tables
from recreplay.tools.bench.empty_cache import empty_cache
from recreplay.tools.bench.latency import Latency
from recreplay.tools.console import Progress
from recreplay.tools.files import temporary_folder

if TYPE_CHECKING:
    from torch import Tensor

KIND = "recreplay-bench-onnx"
WARM_UP = 20  # pairs before the first that counts
_COLUMNS = (
    *("batch>", "bucket>", "ONNX Runtime p50>", "p99>", "replay p50>", "p99>", "speed-up>"),
    "middle half>",
)
Arrays = Mapping[str, Any]


def measure_files(
    paths: Sequence[str],
    buckets: Sequence[int],
    batches: Sequence[int],
    runs: int,
    progress: Progress,
    settings: dict[str, Any],
    example: dict[str, Tensor] | None = None,
    strict_mode: bool = False,
) -> dict[str, Any]:
    """The report: a stamp, and a result for each file. `settings` are those of `capture`."""
    from recreplay.tools.bench.requests import COUNT
    from recreplay.tools.bench.stamp import stamp

    runtime = _onnx_runtime()
    return {
        "kind": KIND,
        "stamp": {**stamp(threads=1), "onnxruntime": runtime.__version__},
        "runs": runs,
        "requests": COUNT,
        "results": [
            _measure(path, buckets, batches, runs, progress, settings, example, strict_mode)
            for path in paths
        ],
    }


def render(report: dict[str, Any]) -> Iterator[RenderableType]:
    """One table a file, for people."""
    for result in report["results"]:
        yield tables.table(
            f"{result['target']}: captured in {result['capture_seconds']:.1f} s "
            f"({result['compiler']}, {result['strategy']})",
            _COLUMNS,
            [_row(item) for item in result["batches"]],
        )
    stamp = report["stamp"]
    yield (
        f"Microseconds; one thread each; {report['runs']} pairs, alternating, over "
        f"{report['requests']} requests. Speed-up: ratio of the medians, and the middle half of "
        f"the pairs' ratios.\n{stamp['cpu']} ({stamp['cpu_capability']}), torch {stamp['torch']}, "
        f"ONNX Runtime {stamp['onnxruntime']}, load {stamp['load_average']}"
    )


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    theirs, ours = item["onnxruntime_us"], item["replay_us"]
    return (
        str(item["batch"]),
        str(item["bucket"]),
        *(tables.micros(side[p]) for side in (theirs, ours) for p in ("p50", "p99")),
        tables.times(item["speedup"]),
        f"{item['speedup_p25']:.2f}-{item['speedup_p75']:.2f}",
    )


def _onnx_runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise CaptureError(
            f"measuring against ONNX Runtime needs it ({error}): pip install 'recreplay[onnx]'"
        ) from error
    return onnxruntime


def _measure(
    path: str,
    buckets: Sequence[int],
    batches: Sequence[int],
    runs: int,
    progress: Progress,
    settings: dict[str, Any],
    example: dict[str, Tensor] | None,
    strict_mode: bool,
) -> dict[str, Any]:
    import torch

    from recreplay.runtime import Runtime
    from recreplay.runtime.artifact import open_artifact
    from recreplay.tools.bench.requests import (
        COUNT,
        as_arrays,
        as_the_model_takes_them,
        random_requests,
    )
    from recreplay.tools.capture_model import capture_target
    from recreplay.tools.quiet import quiet
    from recreplay.tools.target import load_target

    progress(f"loading {path}")
    target = load_target(path)
    runtime = _onnx_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with temporary_folder() as folder:
            out = Path(folder) / "model.rr"
            with empty_cache():
                manifest = capture_target(
                    target,
                    out,
                    buckets,
                    progress,
                    example=example,
                    strict_mode=strict_mode,
                    **settings,
                )
            sizes = [bucket.size for bucket in manifest.buckets]
            notices = strict.remarks(manifest) + strict.batch_remarks(batches, sizes)
            if strict_mode:
                strict.refuse(notices)
            artifact = open_artifact(out)
            measured = []
            with Runtime.load(out) as ours:
                for batch in batches:
                    progress(f"{path}: batch {batch}, {runs} pairs of ONNX Runtime and replay")
                    drawn = random_requests(target, artifact, batch, COUNT, seed=7)
                    plain = as_the_model_takes_them(manifest, drawn)
                    requests = [as_arrays(request) for request in drawn]
                    feeds = [as_arrays(request) for request in plain]
                    with quiet():
                        _pairs(session, ours, requests, feeds, WARM_UP)
                        measured.append(_pairs(session, ours, requests, feeds, runs))
    finally:
        torch.set_num_threads(threads)
    return {
        "target": path,
        "name": target.name,
        "buckets": list(buckets),
        "compiler": manifest.compiler,
        "strategy": manifest.strategy,
        "capture_seconds": manifest.capture_seconds,
        "notices": notices,
        "batches": measured,
    }


def _pairs(
    session: Any, ours: Any, requests: Sequence[Arrays], plain: Sequence[Arrays], runs: int
) -> dict[str, Any]:
    from recreplay.tools.bench.compare import largest_difference

    names = [o.name for o in session.get_outputs()]
    taken = {i.name for i in session.get_inputs()}
    feeds = [{k: v for k, v in request.items() if k in taken} for request in plain]
    clock = time.perf_counter_ns
    theirs_ns, ours_ns, worst = [], [], 0.0
    for turn in range(runs):
        at = turn % len(requests)
        if turn % 2:
            t0 = clock()
            got = ours.run(requests[at])
            t1 = clock()
            want = session.run(names, feeds[at])
            t2 = clock()
            ours_ns.append(t1 - t0)
            theirs_ns.append(t2 - t1)
        else:
            t0 = clock()
            want = session.run(names, feeds[at])
            t1 = clock()
            got = ours.run(requests[at])
            t2 = clock()
            theirs_ns.append(t1 - t0)
            ours_ns.append(t2 - t1)
        named = dict(zip(names, want, strict=True))
        worst = max(worst, largest_difference(got, named, "ONNX Runtime"))
    batch = len(next(iter(requests[0].values())))
    sizes = [b.size for b in ours.manifest.buckets]
    theirs, mine = Latency.from_ns(theirs_ns), Latency.from_ns(ours_ns)
    low, high = np.percentile(np.asarray(theirs_ns) / np.asarray(ours_ns), [25, 75])
    return {
        "batch": batch,
        "bucket": next((s for s in sizes if s >= batch), sizes[-1]),
        "onnxruntime_us": theirs.to_json(),
        "replay_us": mine.to_json(),
        "speedup": round(theirs.p50 / mine.p50, 3),
        "speedup_p25": round(float(low), 3),
        "speedup_p75": round(float(high), 3),
        "max_abs_error": worst,
    }
