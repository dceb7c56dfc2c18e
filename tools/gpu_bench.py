"""Eager against replay on a GPU, each model captured in several ways: what each of them is worth.

`gpu_check` runs this module in processes of its own; see `gpu_jobs`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recreplay.tools.files import temporary_folder
from recreplay.tools.gpu_jobs import LAST, Row, Say, Turns, do_jobs

if TYPE_CHECKING:
    from recreplay.tools.bench.compare import Session

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
FEWER = (1, 64, 1024)  # of ways that are told beside the default one
RUNS = 200  # pairs of eager and replay
# Those whose ways differ most first.
MODELS = (
    *("dlrm", "streamrec", "microrec_98", "mt_wide_deep"),
    *("dlrm_rmc1", "microrec_47", "wide_deep", "dlrm_rmc3"),
)
ROWS_SCALE = "rows_scale=0.05"
# Strategy, streams, and what is done to the model, so that each way has one that differs in one
# thing: one stream, lookups grouped or each by itself, no rewrites, fewer streams, epilogues,
# columns, and each branch on a stream of its own, where no order is left but that of the data.
WAYS: tuple[tuple[str, int, str], ...] = (
    ("matching", 8, "default"),
    ("matching", 8, "lookups apart"),
    ("single", 1, "default"),
    ("matching", 8, "none"),
    ("single", 1, "none"),
    ("matching", 2, "none"),
    ("matching", 4, "none"),
    ("matching", 8, "grouped"),
    ("single", 1, "grouped"),
    ("matching", 8, "no epilogues"),
    ("matching", 8, "no inlined columns"),
    ("feature", 8, "none"),
    ("feature", 512, "none"),
)
# What lookups in one and streams are worth: so many ways, of so many models, before all others.
_ASKED, _OF = 7, 3
_COSTS = "costs"  # in place of a way: what requests take of the host, and run on the GPU


def rewrites_of(way: str) -> tuple[str, ...]:
    """The rewrites that a way of `WAYS` means."""
    from recreplay.capture import DEFAULT_REWRITES

    sets = {
        "default": DEFAULT_REWRITES,
        "grouped": ("group_lookups", *DEFAULT_REWRITES),
        "lookups apart": tuple(r for r in DEFAULT_REWRITES if r != "stack_lookups"),
        "no epilogues": tuple(r for r in DEFAULT_REWRITES if r != "fuse_epilogues"),
        "no inlined columns": tuple(r for r in DEFAULT_REWRITES if r != "inline_columns"),
        "none": (),
    }
    return sets[way]


def jobs(compilers: list[str]) -> list[Row]:
    """All of the first compiler before the next. One way of all models before the next way of any,
    so that little time tells something of each; but first the ways that are asked for most, of the
    models that tell most. Behind the first way is what its requests cost."""
    asked = [(compilers[0], way, name) for way in WAYS[:_ASKED] for name in MODELS[:_OF]]
    ways = [(compiler, way) for compiler in compilers for way in WAYS]
    ways.insert(1, (compilers[0], (*WAYS[0][:2], _COSTS)))
    every = [(compiler, way, name) for compiler, way in ways for name in MODELS]
    return [
        {
            "model": name,
            "strategy": strategy,
            "streams": streams,
            "way": way,
            "compiler": compiler,
            "arguments": [ROWS_SCALE],
            "batches": [*(BATCHES if way in ("default", _COSTS) else FEWER)],
            "runs": RUNS,
            **({LAST: True} if way == _COSTS else {}),
        }
        for compiler, (strategy, streams, way), name in dict.fromkeys([*asked, *every])
    ]


def measure(job: Row, say: Say, turns: Turns) -> None:
    """One model in one way: a row of times at every batch size, of the memory it takes, of copies
    inside and outside of the graph, and of none; or of what requests take of the host."""
    from recreplay.capture import capture
    from recreplay.runtime.artifact import open_artifact
    from recreplay.tools.bench.compare import Session
    from recreplay.tools.bench.mapped import compare_mapped
    from recreplay.tools.target import load_target

    way = WAYS[0][2] if job["way"] == _COSTS else job["way"]
    row, batches = dict(job), job["batches"]
    with temporary_folder() as folder:
        out = folder / f"{job['model']}.rr"
        with turns.beside():
            target = load_target(f"recreplay.models:{job['model']}", job["arguments"])
            manifest = capture(
                target.model,
                out=out,
                buckets=batches,
                device="cuda",
                strategy=job["strategy"],
                streams=job["streams"],
                compiler=job["compiler"],
                rewrites=rewrites_of(way),
            )
            begun = time.perf_counter()
            session = Session(target, out, "cuda")
            row["capture_seconds"] = manifest.capture_seconds
            row["ready_seconds"] = round(time.perf_counter() - begun, 3)
        with session, turns.alone():
            if job["way"] == _COSTS:
                row["costs"] = {str(batch): costs(session, batch) for batch in batches}
            else:
                row["results"] = [
                    session.compare(batch, job["runs"]).to_json() for batch in batches
                ]
        say(row)
        if job["way"] == "default":
            with turns.alone():
                more = {
                    **memory(out),
                    "copies": _copies(out, job["runs"]) if job["streams"] > 1 else {},
                }
            of = {key: job[key] for key in ("model", "strategy", "streams", "way", "compiler")}
            say({**of, **more})
            with turns.alone():  # behind all else: kernels read what is not the device's
                mapped = compare_mapped(open_artifact(out), job["runs"])
            say({**of, "mapped": {str(size): found.to_json() for size, found in mapped.items()}})


def memory(path: Path) -> dict[str, int]:
    """Bytes of the device that a loaded artifact takes, and of its weights among them."""
    import torch

    from recreplay.runtime import Runtime
    from recreplay.runtime.artifact import WEIGHTS

    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    with Runtime.load(path):
        left, _ = torch.cuda.mem_get_info()
    return {"loaded_bytes": free - left, "weights_bytes": (path / WEIGHTS).stat().st_size}


def _copies(path: Path, runs: int) -> dict[str, Any]:
    from recreplay.runtime.artifact import open_artifact
    from recreplay.tools.bench.copies import compare_copies

    found = compare_copies(open_artifact(path), runs)
    return {str(size): copies.to_json() for size, copies in found.items()}


def costs(session: Session, batch: int) -> dict[str, Any]:
    """What a request of so many rows takes of the host, by eager and by replay, and what a replay
    runs. By a profiler, which may slow down all calls of CUDA after it."""
    import torch

    from recreplay.tools.bench.request_cost import request_cost
    from recreplay.tools.bench.requests import as_arrays
    from recreplay.tools.gpu_profile import ran_by

    request = session.requests(batch, 1)[0]
    call, arrays = session.eager.prepare(request), as_arrays(request)
    with torch.inference_mode():
        eager = request_cost(call).to_json()
    replay = request_cost(lambda: session.runtime.run(arrays)).to_json()
    ran = ran_by(lambda: session.runtime.run(arrays))
    return {"eager_cost": eager, "replay_cost": replay, "replay_ran": ran}


if __name__ == "__main__":
    do_jobs(measure)
