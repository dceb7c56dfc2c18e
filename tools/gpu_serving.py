"""One model on a GPU as services use it: lanes, batching, coroutines, beside a thread of Python.

`gpu_check` runs this module in a process of its own; see `gpu_jobs`.
"""

from __future__ import annotations

from recreplay.tools.files import temporary_folder
from recreplay.tools.gpu_jobs import Row, Say, Turns, do_jobs

SIZES, LANES, DELAYS = [1, 64, 1024], [1, 2, 4], [None, 0, 200]
_READY = 40.0  # seconds for the capture, of those that are given


def measure(job: Row, say: Say, turns: Turns) -> None:
    """What `recreplay saturate` measures, of DLRM: a row for each of its four."""
    from recreplay.capture import capture
    from recreplay.tools.load import saturate
    from recreplay.tools.target import load_target

    sizes = job["sizes"]
    target = load_target("recreplay.models:dlrm", job["arguments"])
    with temporary_folder() as folder:
        out = folder / "dlrm.rr"
        capture(target.model, out=out, buckets=sizes, device="cuda", compiler=job["compiler"])
        # Of each size: lanes, delays, six kinds of coroutines at most, alone and beside Python.
        measured = len(sizes) * (len(LANES) + len(DELAYS) + 6 + 2)
        each = max(job["seconds"] - _READY, job["seconds"] / 2) / measured
        limit = min(each, 2.0)
        for name, found in saturate.measured(out, sizes, LANES, DELAYS, limit, print):
            say({**job, name: found})


if __name__ == "__main__":
    do_jobs(measure)
