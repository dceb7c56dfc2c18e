"""`--buckets auto`: the bucket list that observed request sizes ask for, and what others cost."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.capture.buckets import (
    Expected,
    best_buckets,
    expect,
    interpolated,
    powers_of_two,
    steps_of_eight,
)
from recreplay.runtime.errors import InputError
from recreplay.tools.files import why_unread
from recreplay.tools.query_sizes import DISTRIBUTIONS, MOST, draw_sizes, histogram

if TYPE_CHECKING:
    from torch import Tensor

    from recreplay.tools.target import Target

_REQUESTS, _RUNS, _WARM_UP = 17, 100, 20
_DRAWN = 100_000  # sizes of a trace that is drawn from a distribution
_MODELLED = (1, 4, 16, 64, 256, 1024, 4096, MOST)


@dataclass(frozen=True)
class Choice:
    """The best list beside lists by rule, and where the costs of buckets come from."""

    sizes: dict[str, float]  # requests, and rows of them
    costs: str
    points: dict[int, float]  # microseconds of bucket sizes, that the others lie between
    best: Expected
    others: dict[str, Expected]

    @property
    def buckets(self) -> list[int]:
        return list(self.best.buckets)

    def to_json(self) -> dict[str, Any]:
        return {
            "sizes": self.sizes,
            "costs": self.costs,
            "cost_us": self.points,
            "best": asdict(self.best),
            "others": {name: asdict(found) for name, found in self.others.items()},
        }


def choose(
    sizes: Mapping[int, int],
    k: int,
    points: Mapping[int, float],
    costs: str,
    *,
    whole: bool = False,
) -> Choice:
    """The best list of at most `k` buckets, beside powers of two and steps of eight: `k` of them,
    and as many as it takes to hold every request. `whole`: no request may be split."""
    cost = interpolated(points)
    best = best_buckets(sizes, k, cost, whole=whole)
    largest = max(sizes)
    lists = {
        f"powers of two, top {k}": powers_of_two(largest, k),
        "powers of two": powers_of_two(largest),
        f"{k} multiples of 8": steps_of_eight(largest, k),
        "multiples of 8": steps_of_eight(largest),
    }
    requests = sum(sizes.values())
    return Choice(
        {
            "requests": requests,
            "smallest": min(sizes),
            "mean": round(sum(n * c for n, c in sizes.items()) / requests, 1),
            "largest": largest,
        },
        costs,
        dict(points),
        expect(sizes, best, cost),
        {name: expect(sizes, buckets, cost) for name, buckets in lists.items()},
    )


def read_sizes(text: str) -> dict[int, int]:
    """How often each size occurs in a trace: an .npy file of whole numbers, or the name of a
    published distribution, from which a trace is drawn."""
    if text in DISTRIBUTIONS:
        return histogram(draw_sizes(text, _DRAWN))
    path = Path(text)
    if not path.is_file():
        known = ", ".join(DISTRIBUTIONS)
        raise InputError(f"no file at {text}; expected a .npy file of request sizes, or {known}")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not an .npy file: {why_unread(error)}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.size == 0:
        got = "several arrays"
        if isinstance(array, np.ndarray):
            got = f"{array.size} numbers of {array.dtype}"
        raise InputError(
            f"{path}: expected an array of whole numbers, the rows of each request, got {got}"
        )
    found = histogram(array.ravel())
    if min(found) < 1 or max(found) > MOST:
        raise InputError(
            f"{path} has sizes of {min(found)} to {max(found)} rows; expected 1 to {MOST}"
        )
    return found


def measured_costs(path: Path, device: str) -> dict[int, float]:
    """Microseconds of `Runtime.run` for each bucket of an artifact, measured here."""
    from recreplay.runtime import Runtime
    from recreplay.runtime.artifact import open_artifact
    from recreplay.tools.quiet import quiet
    from recreplay.tools.view.samples import sample_requests

    artifact = open_artifact(path)
    sizes = [bucket.size for bucket in artifact.manifest.buckets]
    requests = [sample_requests(artifact, size, _REQUESTS) for size in sizes]
    taken: list[list[int]] = [[] for _ in sizes]
    clock = time.perf_counter_ns
    with Runtime.load(path, device=device) as runtime, quiet():
        for turn in range(-_WARM_UP, _RUNS):  # sizes in turns, so that they share what disturbs
            for samples, mine in zip(taken, requests, strict=True):
                request = mine[turn % _REQUESTS]
                begun = clock()
                runtime.run(request)
                if turn >= 0:
                    samples.append(clock() - begun)
    return {
        size: round(float(np.median(samples)) / 1e3, 3)
        for size, samples in zip(sizes, taken, strict=True)
    }


def modelled_costs(
    target: Target,
    example: dict[str, Tensor] | None,
    device: str,
    largest: int,
    **declared: Any,
) -> dict[int, float]:
    """Microseconds of a bucket at the rates of this machine: a call, one more for each operator and
    each input, and the slowest of memory, arithmetic and link that no replay can avoid. `declared`
    are what capture is told of inputs."""
    from recreplay.capture.ingest import ingest
    from recreplay.capture.least_work import crossing, least_work, leave_out_avoidable
    from recreplay.capture.specialise import specialise
    from recreplay.capture.views import launches
    from recreplay.tools.bench.floor import measure_floor
    from recreplay.tools.quiet import quiet

    own = getattr(target.model, "example_inputs", None)
    with contextlib.redirect_stdout(sys.stderr):  # what the user's model prints
        given = own(4) if example is None and callable(own) else example
        model = ingest(target.model, given, **declared)
    with quiet():
        floor = measure_floor(device)
    found = {}
    for size in sorted({*(n for n in _MODELLED if n < largest), largest}):
        program = specialise(model, size)
        leave_out_avoidable(program)
        calls = len(launches(program.graph)) + len(model.inputs)
        least = floor.us(least_work(program), crossing(program))
        found[size] = round(least + calls * floor.operator_us, 3)
    return found


def rows(choice: Choice) -> Sequence[Sequence[str]]:
    """A line for each list: buckets, expected time, padding, splits."""
    from recreplay.tools import tables

    lists = {"auto": choice.best, **choice.others}
    return [
        (
            name,
            _short(found.buckets),
            tables.micros(found.us),
            tables.times(found.us / choice.best.us),
            f"{100 * found.padding:.1f} %",
            f"{100 * found.split:.1f} %",
        )
        for name, found in lists.items()
    ]


def _short(buckets: Sequence[int]) -> str:
    if len(buckets) <= 12:
        return ", ".join(map(str, buckets))
    return f"{', '.join(map(str, buckets[:3]))}, … {buckets[-1]}: {len(buckets)} buckets"
