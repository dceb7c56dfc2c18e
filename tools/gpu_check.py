"""`python -m recreplay.tools.gpu_check --out DIR`: prove and measure the CUDA side on this machine.

Five parts, each of which writes a file of its own, stamped with commit, device, driver and
versions: `tests` runs `tests/gpu` (`gpu-tests.json`), `peers` measures models at their published
sizes beside what else one would pick and beside the floor (`gpu-peers.json`), `bench` captures
models in several ways, eager against replay (`gpu-bench.json`), `serving` measures one model by
lanes, batching, coroutines and beside a thread of Python (`gpu-serving.json`), and `sanitizer` runs
compute-sanitizer on one small capture where there is one (`gpu-sanitizer.json`). Nothing is
installed or downloaded. Where CUDA headers for compiling are missing it says so and proves eager
segments alone. Where a first small model shows that packages do not work, eager segments are first.

All of it ends after `--seconds`, and what was found until then is in the files: each is written
anew whenever something is added. Parts share the time by their weights, and what one leaves is the
others'. Whatever may end a process has one of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from recreplay.tools import gpu_bench, gpu_first, gpu_peers, gpu_serving
from recreplay.tools.files import write_json
from recreplay.tools.gpu_jobs import Row, run_jobs
from recreplay.tools.gpu_tests import run_tests
from recreplay.tools.limited_run import run_limited

# In their order: the part of the time that is left when one begins is its weight over those of all
# that are left.
PARTS = {"tests": 3.0, "peers": 6.0, "bench": 3.0, "serving": 1.0, "sanitizer": 1.0}
CAPTURES = {"peers", "bench", "serving"}  # those that compile
LANES = 4  # processes that get jobs ready side by side
PATIENCE = 240.0  # seconds for a job to say something; a capture of a large model says nothing
Keep = Callable[[object], None]


def sanitize(work: Path, seconds: float, keep: Keep = lambda found: None) -> dict[str, Any]:
    """What compute-sanitizer says of a capture of several streams and the grouped kernel, which
    records, replays and verifies it. `seconds` for all checks, which slow kernels down many
    times."""
    tool = shutil.which("compute-sanitizer", path=_path_with_cuda())
    if tool is None:
        return {"absent": "compute-sanitizer is not on this machine"}
    found: dict[str, Any] = {}
    end = time.monotonic() + seconds
    checks = ("memcheck", "racecheck")
    for at, check in enumerate(checks):
        limit = (end - time.monotonic()) / (len(checks) - at)
        command = [tool, "--tool", check, "--error-exitcode", "99", sys.executable]
        command += ["-m", "recreplay.tools.cli", "capture", "recreplay.models:microrec_47"]
        command += ["--arg", "rows_scale=0.001", "--buckets", "4", "--device", "cuda"]
        command += ["--compiler", "eager", "--strategy", "matching", "--streams", "4"]
        command += ["--rewrites", "group_lookups", "--out", str(work / f"{check}.rr")]
        code, said = run_limited(command, limit)
        if code is None:
            found[check] = {"absent": f"not done after {limit:.0f} s", "tail": said[-1500:]}
        else:
            found[check] = {"exit_code": code, "tail": said[-1500:]}
        keep(found)
    return found


def _path_with_cuda() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])


def in_processes(
    module: str, jobs: Sequence[Row], work: Path, end: float, lanes: int, note: Any
) -> None:
    """Jobs of a module, which are noted one row at a time."""
    if not jobs:
        return
    noting = threading.Lock()

    def one(row: Row) -> None:
        with noting:
            note(row)

    run_jobs(module, jobs, Path(tempfile.mkdtemp(dir=work)), end, PATIENCE, lanes, one)


def measure_peers(work: Path, compiler: str, seconds: float, note: Callable[[Row], None]) -> None:
    """Models beside their peers, and then beside those that measure as they compile."""
    end = time.monotonic() + seconds
    beside, alone = gpu_peers.jobs(compiler, time.time() + seconds)
    in_processes(gpu_peers.__name__, beside, work, end, LANES, note)
    in_processes(gpu_peers.__name__, alone, work, end, 1, note)


def measure_ways(
    work: Path, compilers: list[str], seconds: float, note: Callable[[Row], None]
) -> None:
    """Each model in each way."""
    end = time.monotonic() + seconds
    in_processes(gpu_bench.__name__, gpu_bench.jobs(compilers), work, end, LANES, note)


def measure_serving(work: Path, compiler: str, seconds: float, note: Callable[[Row], None]) -> None:
    """What lanes, batching and coroutines give."""
    end = time.monotonic() + seconds
    job = {
        "arguments": [gpu_bench.ROWS_SCALE],
        "sizes": gpu_serving.SIZES,
        "compiler": compiler,
        "seconds": seconds,
    }
    in_processes(gpu_serving.__name__, [job], work, end, 1, note)


def main() -> int:
    import torch

    from recreplay.capture.compilers.toolchain import cuda_root, inductor_problem
    from recreplay.tools.bench.stamp import stamp

    parser = argparse.ArgumentParser(prog="recreplay.tools.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result files")
    parser.add_argument(
        "--root", type=Path, default=Path.cwd(), help="the checkout (has tests/gpu)"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas")
    parser.add_argument("--seconds", type=float, default=480.0, help="time for all of it")
    parser.add_argument("--commit", help="of the checkout, where it is a copy without git's data")
    arguments = parser.parse_args()
    begun = time.monotonic()
    parts = arguments.parts.split(",")
    for part in parts:
        if part not in PARTS:
            print(f"error: no part {part!r}; {', '.join(PARTS)}", file=sys.stderr)
            return 2
    if not torch.cuda.is_available():
        print("error: no CUDA device here, so there is nothing to check", file=sys.stderr)
        return 1
    problem = inductor_problem("cuda")
    if problem is not None:
        print(f"NOTICE: {problem}; only eager segments are checked", file=sys.stderr)
    compilers = ["eager"] if problem else ["inductor", "eager"]
    # Peers compile as well, side by side: torch is not to ask each time, one after the other, what
    # vectors this processor has, nor to begin with a process for each core in each of them.
    os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    if (root := cuda_root()) is not None:
        os.environ["CUDA_HOME"] = str(root)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stamped = stamp(torch.get_num_threads())
    heading: dict[str, Any] = {
        **stamped,
        "commit": stamped["commit"] or arguments.commit,
        "device": torch.cuda.get_device_name(),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "cuda_bindings": _version("cuda-bindings"),
        "compiling": problem or "AOTInductor",
    }

    def write(part: str, found: object) -> None:
        write_json(arguments.out / f"gpu-{part}.json", {**heading, part: found})

    def add(part: str, rows: list[Row], row: Row) -> None:
        rows.append(row)
        write(part, rows)
        print(f"{part}: {_brief(row)}", flush=True)

    wrong = False
    with (
        tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder,
        ThreadPoolExecutor(1) as aside,  # beside the tests, if they are asked for
    ):
        work = Path(folder)
        _end_at_once(work)
        first = None
        if problem is None and not CAPTURES.isdisjoint(parts):
            first = aside.submit(gpu_first.compiled_problem, work, begun + arguments.seconds)
        for at, part in enumerate(parts):
            if first is not None and part in CAPTURES:
                found, first = first.result(), None
                if found is not None:
                    print(f"NOTICE: {found}; eager segments are measured first", file=sys.stderr)
                    heading["compiling"] = found
                    compilers.reverse()
            left = arguments.seconds - (time.monotonic() - begun)
            seconds = left * PARTS[part] / sum(PARTS[p] for p in parts[at:])
            note = partial(add, part, [])
            if part == "tests":
                tests = run_tests(arguments.root, work, seconds, partial(write, part))
                wrong = tests["exit_code"] != 0
                print(f"{tests['passed']} passed, {tests['skipped']} skipped", flush=True)
            elif part == "peers":
                measure_peers(work, compilers[0], seconds, note)
            elif part == "bench":
                measure_ways(work, compilers, seconds, note)
            elif part == "serving":
                measure_serving(work, compilers[0], seconds, note)
            else:
                write(part, sanitize(work, seconds, partial(write, part)))
            print(f"{part}: {arguments.out / f'gpu-{part}.json'}", flush=True)
    return int(wrong)


def _end_at_once(work: Path) -> None:
    """When this process is told to end, it does not wait for its threads, which wait for processes
    to come to theirs; those end with it."""

    def end(number: int, frame: object) -> None:
        shutil.rmtree(work, ignore_errors=True)
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _brief(row: Row) -> str:
    """What a row is of, and the one figure that says most."""
    named = [
        str(row[k]) for k in ("model", "name", "compiler", "strategy", "way", "batch") if k in row
    ]
    told: dict[str, Any] = {k: row[k] for k in row if k in ("error", "skipped")}
    if "ours_to_best_peer" in row:
        told |= {"of the best peer": row["ours_to_best_peer"]["ratio"]}
        told |= {c["name"]: c["latency_us"]["p50"] for c in row["contenders"]}
        told |= {"of the floor": row["floor"]["ours_to_floor"]}
    for found in row.get("results", ()):
        told[str(found["batch"])] = f"{found['eager_us']['p50']} -> {found['replay_us']['p50']}"
    return f"{', '.join(named)}: " + ", ".join(f"{k} {v}" for k, v in told.items())[:600]


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    raise SystemExit(main())
