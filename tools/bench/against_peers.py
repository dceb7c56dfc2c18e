"""Ours against what a user would pick instead: one run, rounds interleaved, answers checked.

Each model is measured in a process of its own where there are several: see `apart`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recreplay.runtime.errors import ParityError
from recreplay.tools import strict
from recreplay.tools.bench.apart import apart
from recreplay.tools.bench.captured import captured
from recreplay.tools.bench.cold import evictor
from recreplay.tools.bench.compare import largest_difference
from recreplay.tools.bench.floor import Floor, measure_floor
from recreplay.tools.bench.peer_report import KIND
from recreplay.tools.bench.peers import find_peers
from recreplay.tools.bench.peers.base import Arrays, Peer, Subject
from recreplay.tools.bench.peers.contender import Contender, LocalContender
from recreplay.tools.bench.peers.own_process import ProcessContender
from recreplay.tools.bench.requests import (
    COUNT,
    as_arrays,
    as_the_model_takes_them,
    random_requests,
)
from recreplay.tools.bench.rounds import TURN, Spread, latencies, play
from recreplay.tools.bench.stamp import heading
from recreplay.tools.bench.suites import Benchmark
from recreplay.tools.console import Progress
from recreplay.tools.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor

WARM_UP = 20  # rounds before the first that counts, at most
OURS, EAGER = "ours", "eager"
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Ring:
    """Who is measured, for how long, and under which conditions.

    Where several models are measured side by side, contenders get ready inside of `beside()`, and
    are timed inside of `alone()`. Peers in processes of their own have `patience` seconds to load,
    and for each batch size; None: as long as it takes.
    """

    peers: tuple[Peer, ...]
    runs: int
    cold: bool
    settings: dict[str, Any]  # of capture
    example: dict[str, Tensor] | None
    strict_mode: bool
    beside: Callable[[], AbstractContextManager[object]] = nullcontext
    alone: Callable[[], AbstractContextManager[object]] = nullcontext
    patience: float | None = None

    @property
    def device(self) -> str:
        return str(self.settings["device"])


def measure(
    benchmarks: Sequence[Benchmark],
    names: Sequence[str],
    runs: int,
    cold: bool,
    progress: Progress,
    settings: dict[str, Any],
    example: dict[str, Tensor] | None = None,
    strict_mode: bool = False,
) -> dict[str, Any]:
    """The report: a stamp, the machine's floor, who took part, and a result for each model."""
    ring = Ring(tuple(find_peers(names)), runs, cold, settings, example, strict_mode)
    progress("measuring what the machine can do")
    with quiet():
        floor = measure_floor(ring.device)
    report: dict[str, Any] = {
        **heading(KIND, runs),
        "calls_of_a_turn": 1 if cold else TURN,
        "cold": cold,
        "processes": len(benchmarks),
        "evicted_bytes": evictor(ring.device)[1] if cold else None,
        "floor": floor.to_json(),
        "peers": [
            {"name": p.name, "about": p.about, "absent": p.absent(ring.device)} for p in ring.peers
        ],
        "results": [],
    }
    for benchmark in benchmarks:
        if len(benchmarks) == 1:
            report["results"].append(_measure_one(benchmark, ring, floor, progress))
        else:
            found = apart(_measure_one, benchmark, ring, floor, progress=progress)
            report["results"].append(found)
    return report


def _measure_one(
    benchmark: Benchmark, ring: Ring, floor: Floor, progress: Progress
) -> dict[str, Any]:
    with (
        captured(benchmark, progress, ring.settings, ring.example, ring.strict_mode) as model,
        contextlib.ExitStack() as stack,
    ):
        if ring.strict_mode:
            strict.refuse(model.notices())
        subject = Subject(model.target, model.path, ring.device, model.folder)
        contenders, absent = enter(subject, ring, progress, stack)
        batches = []
        for batch in benchmark.batches:
            found, left_out = measure_batch(subject, contenders, batch, ring, floor, progress)
            batches.append(found)
            absent |= {f"{name} at batch {batch}": why for name, why in left_out.items()}
    return {
        **model.to_json(),
        "notices": model.notices(),
        "absent": absent,
        "batches": batches,
    }


def enter(
    subject: Subject, ring: Ring, progress: Tell, stack: contextlib.ExitStack
) -> tuple[list[Contender], dict[str, str]]:
    """Load every peer that can be loaded, and say why the others cannot. Those in processes of
    their own get ready at the same time."""
    contenders: list[Contender] = []
    absent: dict[str, str] = {}
    pool = stack.enter_context(ThreadPoolExecutor())
    there = [p for p in ring.peers if p.absent(ring.device) is None]  # the report names the others
    loading: dict[str, Future[ProcessContender]] = {}
    for peer in there:
        if peer.records_graphs and ring.device.startswith("cuda"):
            asked = pool.submit(ProcessContender, peer.name, subject, ring.patience)
            stack.callback(_close_loaded, asked)
            loading[peer.name] = asked
    for peer in there:
        progress(f"{subject.target.name}: loading {peer.name}")
        contender: Contender
        try:
            if peer.name in loading:
                contender = loading[peer.name].result()
            else:
                with quiet():
                    contender = LocalContender(peer, subject)
                stack.callback(contender.close)
        except Exception as error:
            if peer.name in (OURS, EAGER):
                raise
            absent[peer.name] = _reason(error)
            continue
        contenders.append(contender)
    return contenders, absent


def _close_loaded(asked: Future[ProcessContender]) -> None:
    if asked.exception() is None:
        asked.result().close()


def measure_batch(
    subject: Subject,
    contenders: Sequence[Contender],
    batch: int,
    ring: Ring,
    floor: Floor,
    progress: Tell,
) -> tuple[dict[str, Any], dict[str, str]]:
    """One batch size, and why peers are left out of it."""
    tensors = random_requests(subject.target, subject.captured, batch, COUNT, 7)
    plain = as_the_model_takes_them(subject.manifest, tensors)
    ours, theirs = ([as_arrays(request) for request in some] for some in (tensors, plain))
    left_out: dict[str, str] = {}
    ready: list[Contender] = []
    errors: dict[str, float] = {}
    want: list[Arrays] = []
    with quiet(), ring.beside(), ThreadPoolExecutor() as pool:
        elsewhere = {
            c.name: pool.submit(c.prepare, theirs)
            for c in contenders
            if isinstance(c, ProcessContender)
        }
        for contender in contenders:  # eager is the first
            progress(f"{subject.target.name}: batch {batch}, preparing {contender.name}")
            try:
                if contender.name in elsewhere:
                    elsewhere[contender.name].result()
                else:
                    contender.prepare(ours if is_ours(contender.name) else theirs)
                answers = [contender.answer(i) for i in range(COUNT)]
                want = want or answers
                errors[contender.name] = _largest(answers, want)
            except Exception as error:
                if contender.name in (OURS, EAGER):
                    raise
                left_out[contender.name] = _reason(error)
                continue
            ready.append(contender)
    with quiet(), ring.alone():
        progress(f"{subject.target.name}: batch {batch}, {ring.runs} rounds of {len(ready)}")
        evict = evictor(ring.device)[0] if ring.cold else None
        play(ready, COUNT, min(ring.runs, WARM_UP), evict)
        found = play(ready, COUNT, ring.runs, evict)
        for contender in ready:  # what was measured still answers right
            largest_difference(contender.answer(0), want[0])
    return _batch(subject, batch, found, errors, floor), left_out


def is_ours(name: str) -> bool:
    """Of ours there may be several: `ours`, and `ours, ...` captured in another way."""
    return name.partition(",")[0] == OURS


def _batch(
    subject: Subject,
    batch: int,
    found: dict[str, list[int]],
    errors: dict[str, float],
    floor: Floor,
) -> dict[str, Any]:
    from recreplay.capture.least_work import crossing, least_work, leave_out_avoidable
    from recreplay.capture.lookups import id_bounds
    from recreplay.capture.rewrites.narrow_ids import narrow_ids, narrowed
    from recreplay.capture.specialise import specialise

    percentiles = latencies(found)
    ours = found[OURS]
    best = min(
        (name for name in found if not is_ours(name)), key=lambda name: percentiles[name].p50
    )
    model = subject.ingested_as_captured
    program = specialise(model, batch)
    leave_out_avoidable(program)
    if subject.device.startswith("cuda"):  # and half of the ids, before they are sent
        bounds, _ = id_bounds(program)
        narrow_ids(program, narrowed(model.inputs, bounds, "cuda"))
    work, sent = least_work(program), crossing(program)
    least = floor.us(work, sent)
    return {
        "batch": batch,
        "contenders": [
            {
                "name": name,
                "latency_us": percentiles[name].to_json(),
                "to_ours": Spread.of(samples, ours).to_json(),
                "max_abs_error": errors[name],
            }
            for name, samples in found.items()
        ],
        "best_peer": best,
        "ours_to_best_peer": Spread.of(ours, found[best]).to_json(),
        "floor": {
            "bytes": work.bytes,
            "flops": work.flops,
            "crossing": sent,
            "us": round(least, 3),
            "bound": floor.bound(work, sent),
            "ours_to_floor": round(percentiles[OURS].p50 / least, 3),
        },
    }


def _largest(answers: Sequence[Arrays], want: Sequence[Arrays]) -> float:
    return max(largest_difference(a, w) for a, w in zip(answers, want, strict=True))


_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/'\"]+/)+")


def _reason(error: Exception) -> str:
    """The first lines of an error, and what a compiler says is one; it says the rest at length.
    Files by their names alone: where they were says nothing."""
    kind = "wrong answers" if isinstance(error, ParityError) else type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wrong = [line for line in lines[1:] if "error:" in line]
    text = " ".join(lines[:1] + wrong[:2] if wrong else lines[:3])
    return f"{kind}: {_FOLDERS.sub('', text)}"[:400]
