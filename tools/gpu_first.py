"""The first job on a GPU: one small model compiled, recorded, replayed and compared with eager.

Whatever keeps packages from being compiled or loaded on a machine would else be told by each of a
hundred jobs, after the time that each takes to get there, and nothing be measured.

`gpu_check` runs this module in a process of its own; see `gpu_jobs`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from recreplay.tools.files import temporary_folder
from recreplay.tools.gpu_jobs import Row, Say, Turns, do_jobs, run_jobs

JOB: Row = {"model": "dlrm", "arguments": ["tables=4", "rows_scale=0.001"], "batches": [2]}
_SECONDS = 150.0  # more than that is a slow machine and no reason


def measure(job: Row, say: Say, turns: Turns) -> None:
    from recreplay.capture import capture
    from recreplay.tools.bench.compare import Session
    from recreplay.tools.target import load_target

    (rows,) = job["batches"]
    target = load_target(f"recreplay.models:{job['model']}", job["arguments"])
    with temporary_folder() as folder:
        out = folder / "first.rr"
        capture(target.model, out=out, buckets=[rows], device="cuda", compiler="inductor")
        with Session(target, out, "cuda") as session:
            say({**job, "max_abs_error": session.check(session.requests(rows, 1)[0])})


def compiled_problem(work: Path, end: float) -> str | None:
    """What went wrong, or None; `end` by `time.monotonic`. `work`: a folder."""
    rows: list[Row] = []
    end = min(end, time.monotonic() + _SECONDS)
    run_jobs(__name__, [JOB], Path(tempfile.mkdtemp(dir=work)), end, _SECONDS, 1, rows.append)
    failed = next((row for row in rows if "error" in row), None)
    return (
        None if failed is None else " ".join(f"{failed['error']} {failed.get('tail', '')}".split())
    )


if __name__ == "__main__":
    do_jobs(measure)
