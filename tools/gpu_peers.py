"""Models at their published sizes on a GPU, beside what else one would pick and beside the floor.

`gpu_check` runs this module in processes of its own; see `gpu_jobs`.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recreplay.tools.bench.peers.base import Subject
from recreplay.tools.files import folder_size, temporary_folder
from recreplay.tools.gpu_bench import BATCHES, rewrites_of
from recreplay.tools.gpu_jobs import LAST, Row, Say, Turns, do_jobs

if TYPE_CHECKING:
    from recreplay.runtime.manifest import Manifest
    from recreplay.tools.bench.floor import Floor
    from recreplay.tools.bench.peers.contender import Contender
    from recreplay.tools.target import Target

# DeepRecInfra's eight and MicroRec's two, with arguments. The tables of one are a quarter of their
# 15 GB, so that it fits beside other models, in the host's memory too. Recurrent layers compile
# longest.
MODELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((name, ()) for name in ("dlrm_rmc1", "mt_wide_deep", "microrec_47")),
    *((name, ()) for name in ("dlrm_rmc2", "dlrm_rmc3", "ncf")),
    *(("wide_deep", ()), ("microrec_98", ("rows_scale=0.25",)), ("din", ()), ("dien", ())),
)
FIRST = (1, 64, 1024, 4096)  # batch sizes, before all others
# Those that compile do so in processes of their own, which can be ended.
PEERS = ("multi_stream", "cuda_graph", "reduce_overhead")
MEASURED = ("max_autotune",)  # kernels, as it compiles: nobody else may use the GPU meanwhile
MOST = 64  # rows that peers are asked for; above that, what counts is the floor
MEASURED_ROWS = (1, 64)
RUNS = 60
PATIENCE = 90.0  # seconds for a peer to compile for one batch size
# What is captured, and beside it what may be faster: without forks.
WAY = ("matching", 8, "default")
OTHERS = (("single", 1, "default"),)


def jobs(compiler: str, end: float) -> tuple[list[Row], list[Row]]:
    """Those that may run side by side, and those that may not. `end` is by `time.time`."""
    found = []
    for peers, sizes in ((PEERS, _ordered(BATCHES)), (MEASURED, list(MEASURED_ROWS))):
        told = {"peers": [*peers], "batches": sizes, "compiler": compiler, "runs": RUNS, "end": end}
        told[LAST] = True  # a profiler has been in it

        found.append([{"model": name, "arguments": [*given], **told} for name, given in MODELS])
    return found[0], found[1] if compiler == "inductor" else []


def _ordered(sizes: tuple[int, ...]) -> list[int]:
    return [*(n for n in FIRST if n in sizes), *(n for n in sizes if n not in FIRST)]


def measure(job: Row, say: Say, turns: Turns) -> None:
    """A row for each batch size of one model: as `recreplay bench --peers` reports it."""
    from recreplay.tools.bench import against_peers
    from recreplay.tools.bench.captured import Captured
    from recreplay.tools.bench.peers import find_peers
    from recreplay.tools.bench.suites import Benchmark
    from recreplay.tools.target import load_target

    with turns.alone():
        floor = _floor()
    text = f"recreplay.models:{job['model']}"
    batches = tuple(job["batches"])
    ring = against_peers.Ring(
        peers=tuple(find_peers(job["peers"])),
        runs=job["runs"],
        cold=False,
        settings={"device": "cuda"},
        example=None,
        strict_mode=False,
        beside=turns.beside,
        alone=turns.alone,
        patience=PATIENCE,
    )
    with temporary_folder() as folder, contextlib.ExitStack() as stack:
        with turns.beside():
            target = load_target(text, job["arguments"])
            path = folder / "ours.rr"
            manifest = _capture(target, path, job, *WAY)
            benchmark = Benchmark(text, tuple(job["arguments"]), tuple(sorted(batches)), batches)
            captured = Captured(target, benchmark, folder, path, manifest, folder_size(path))
            subject = Subject(target, path, "cuda", folder)
            contenders, absent = against_peers.enter(subject, ring, _quietly, stack)
            others, why = _others(subject, job, stack)
        told = {**captured.to_json(), "rates": floor.to_json(), "absent": {**absent, **why}}
        for batch in batches:
            if time.time() > job["end"]:
                say({**told, "batch": batch, "skipped": "no time"})
                continue
            some = [
                c
                for c in contenders
                if batch <= MOST or c.name in (against_peers.OURS, against_peers.EAGER)
            ]
            found, left_out = against_peers.measure_batch(
                subject, [*some, *others], batch, ring, floor, _quietly
            )
            say({**told, **found, "left_out": left_out})
        with turns.alone():
            say({"name": captured.target.name, "replays_ran": _ran(subject, contenders, batches)})


def _ran(subject: Subject, contenders: list[Contender], batches: tuple[int, ...]) -> Row:
    """What ours ran at each batch size, kernel by kernel."""
    from recreplay.tools.bench.requests import as_arrays, random_requests
    from recreplay.tools.gpu_profile import ran_by

    (ours,) = (contender for contender in contenders if contender.name == "ours")
    found = {}
    for batch in batches:
        ours.prepare(
            [as_arrays(r) for r in random_requests(subject.target, subject.captured, batch, 1, 7)]
        )
        found[str(batch)] = ran_by(lambda: ours.answer(0))
    return found


def _capture(
    target: Target, path: Path, job: Row, strategy: str, streams: int, way: str
) -> Manifest:
    from recreplay.capture import capture

    return capture(
        target.model,
        out=path,
        buckets=sorted(job["batches"]),
        device="cuda",
        strategy=strategy,
        streams=streams,
        compiler=job["compiler"],
        rewrites=rewrites_of(way),
    )


def _others(
    subject: Any, job: Row, stack: contextlib.ExitStack
) -> tuple[list[Any], dict[str, str]]:
    """Ours captured in other ways, which are told beside and count neither as ours nor as peers;
    and why there are none of some."""
    from recreplay.tools.bench.peers.contender import LocalContender
    from recreplay.tools.bench.peers.ours import Ours

    found: list[Contender] = []
    absent = {}
    for strategy, streams, way in OTHERS:
        name = f"ours, {strategy}, {way}"
        path = subject.folder / f"{strategy}-{way}.rr"
        try:
            _capture(subject.target, path, job, strategy, streams, way)
            contender = LocalContender(Ours(), replace(subject, artifact=path))
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {error}"[:400]
            continue
        shutil.rmtree(path)  # it is on the device; several models' tables fill a disk
        contender.name = name
        stack.callback(contender.close)
        found.append(contender)
    return found, absent


@cache
def _floor() -> Floor:
    """What this GPU can do, once a process."""
    from recreplay.tools.bench.floor import measure_floor
    from recreplay.tools.quiet import quiet

    with quiet():
        return measure_floor("cuda")


def _quietly(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    do_jobs(measure)
