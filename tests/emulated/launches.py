"""How many nodes a replay launches on CUDA, and how many wait for each other, without a GPU.

`run.py launches.py --out FILE`; a file of the same commit is gone on with. Models are captured with
torch's own CUDA code up to the launch of each kernel, which the emulated runtime notes and does not
run. So nothing is computed, and the counts are of what torch, cuBLAS' callers, AOTInductor and
Triton launch, not of what a GPU takes for it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

os.environ["EMULATED_KERNELS"] = "record"  # before torch; compiling processes take it over

from emulated.bindings import node_name, replaced

from recreplay.capture import capture
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import RecReplayError
from recreplay.tools.bench.stamp import stamp
from recreplay.tools.captured_graph import CapturedGraph, WatchedDevice, compare_with_plan
from recreplay.tools.gpu_bench import rewrites_of
from recreplay.tools.target import load_target
from recreplay.tools.view.measured import lane_on

MODELS = ("dlrm", "streamrec", "ncf", "mt_wide_deep", "dlrm_rmc1", "microrec_47", "rm_small")
WAYS = {  # strategy, streams, rewrites as `gpu_bench` names them
    "as it is": ("matching", 8, "none"),
    "stacked": ("matching", 8, "default"),
    "stacked, one stream": ("single", 1, "default"),
    "grouped": ("matching", 8, "grouped"),
    "grouped, one stream": ("single", 1, "grouped"),
}
BUCKETS = [1, 64]
_ANY = 1e30  # nothing is computed, so any answer is as good


class NamingDevice(WatchedDevice):
    """Keeps what each node of a capture is called, too."""

    def __init__(self) -> None:
        super().__init__(0)
        self.names: list[list[str]] = []

    def record(self, streams: int, issue: Any) -> Any:
        recorded = super().record(streams, issue)
        self.names.append([node_name(handle) for handle in self.watch.handles])
        return recorded


def longest_chain(graph: CapturedGraph) -> int:
    """Nodes that wait one for the other."""
    length = [1] * len(graph.types)
    for a, b in sorted(graph.edges):  # nodes are numbered in the order of their capture
        length[b] = max(length[b], length[a] + 1)
    return max(length)


def count(name: str, compiler: str, way: str, out: Path) -> list[dict[str, Any]]:
    strategy, streams, rewrites = WAYS[way]
    target = load_target(f"recreplay.models:{name}", ["rows_scale=0.001"])
    capture(
        target.model,
        out=out,
        buckets=BUCKETS,
        device="cuda",
        strategy=strategy,
        streams=streams,
        compiler=compiler,
        rewrites=rewrites_of(rewrites),
        rtol=_ANY,
        atol=_ANY,
    )
    artifact, device = open_artifact(out), NamingDevice()
    buckets = sorted(artifact.manifest.buckets, key=lambda b: b.size, reverse=True)
    found = []
    with lane_on(device, artifact):
        for bucket, graph, names in zip(buckets, device.graphs, device.names, strict=True):
            assert compare_with_plan(graph, bucket.plan) == []
            kernels = Counter(n for n, t in zip(names, graph.types, strict=True) if "Kernel" in t)
            found.append(
                {
                    "bucket": bucket.size,
                    "streams": bucket.plan.streams,
                    "nodes": len(graph.types),
                    "kernels": kernels.total(),
                    "copies": sum("Memcpy" in t for t in graph.types) - 2,  # beside up and down
                    "chain": longest_chain(graph),
                    "launched": {k[:120]: v for k, v in kernels.most_common()},
                }
            )
    return found[::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compilers", default="eager,inductor")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--ways", default="; ".join(WAYS), help="separated by '; '")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    report: dict[str, Any] = {"kind": "launches", "stamp": stamp(1), "rows": []}
    if given.out and given.out.exists():
        before = json.loads(given.out.read_text())
        if before["stamp"]["commit"] == report["stamp"]["commit"]:
            report = before
    done = {(r["model"], r["compiler"], r["way"]) for r in report["rows"]}
    wanted = product(given.models.split(","), given.compilers.split(","), given.ways.split("; "))
    with replaced(), tempfile.TemporaryDirectory() as folder:
        for name, compiler, way in (w for w in wanted if w not in done):
            what = {"model": name, "compiler": compiler, "way": way}
            try:
                rows = count(name, compiler, way, Path(folder) / f"{len(report['rows'])}.rr")
            except (RecReplayError, RuntimeError) as error:
                rows = [{"error": str(error)[-600:]}]
            for row in rows:
                told = ", ".join(f"{k} {v}" for k, v in row.items() if k != "launched")
                print(f"{name}, {compiler}, {way}: {told}", flush=True)
                report["rows"].append({**what, **row})
            if given.out:
                given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
