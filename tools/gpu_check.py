"""`python -m recreplay.tools.gpu_check --out DIR`: prove and measure the CUDA side on this machine.

Four parts, each of which writes a file of its own, stamped with commit, device, driver and
versions: `tests` runs `tests/gpu` (`gpu-tests.json`), `bench` measures models, eager against
replay, in several ways (`gpu-bench.json`), `serving` measures one model by lanes, batching,
coroutines and beside a thread of Python (`gpu-serving.json`), and `sanitizer` runs
compute-sanitizer on one small capture where there is one (`gpu-sanitizer.json`). Nothing is
installed or downloaded. Where CUDA headers for compiling are missing it says so and proves eager
segments alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recreplay.tools.gpu_tests import run_tests
from recreplay.tools.limited_run import run_limited

if TYPE_CHECKING:
    from recreplay.tools.bench.compare import Session

PARTS = ("tests", "bench", "serving", "sanitizer")
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
MODELS = (
    *("dlrm", "dlrm_rmc1", "dlrm_rmc3", "streamrec", "wide_deep", "mt_wide_deep"),
    *("microrec_47", "microrec_98"),
)
ROWS_SCALE = "rows_scale=0.05"
# Strategy, streams, and what is done to the model, so that each way has one that differs in one
# thing: lookups grouped, one stream, epilogues, no rewrites, fewer streams, and each branch on a
# stream of its own, where no order is left but that of the data.
WAYS: tuple[tuple[str, int, str], ...] = (
    ("matching", 8, "default"),
    ("matching", 8, "grouped"),
    ("single", 1, "default"),
    ("single", 1, "grouped"),
    ("matching", 8, "no epilogues"),
    ("matching", 8, "none"),
    ("matching", 2, "none"),
    ("feature", 8, "none"),
    ("feature", 512, "none"),
)


def rewrites_of(way: str) -> tuple[str, ...]:
    """The rewrites that a way of `WAYS` means."""
    from recreplay.capture import DEFAULT_REWRITES

    sets = {
        "default": DEFAULT_REWRITES,
        "grouped": ("group_lookups", *DEFAULT_REWRITES),
        "no epilogues": tuple(r for r in DEFAULT_REWRITES if r != "fuse_epilogues"),
        "none": (),
    }
    return sets[way]


def sanitize(work: Path, seconds: float) -> dict[str, Any]:
    """What compute-sanitizer says of a capture of several streams and the grouped kernel, which
    records, replays and verifies it. `seconds` for a check, which slows kernels down many times."""
    tool = shutil.which("compute-sanitizer", path=_path_with_cuda())
    if tool is None:
        return {"absent": "compute-sanitizer is not on this machine"}
    found: dict[str, Any] = {}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "99", sys.executable]
        command += ["-m", "recreplay.tools.cli", "capture", "recreplay.models:microrec_47"]
        command += ["--arg", "rows_scale=0.001", "--buckets", "4", "--device", "cuda"]
        command += ["--compiler", "eager", "--strategy", "matching", "--streams", "4"]
        command += ["--rewrites", "group_lookups", "--out", str(work / f"{check}.rr")]
        code, said = run_limited(command, seconds)
        if code is None:
            found[check] = {"absent": f"not done after {seconds:.0f} s", "tail": said[-1500:]}
        else:
            found[check] = {"exit_code": code, "tail": said[-1500:]}
    return found


def _path_with_cuda() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])


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


def measure(
    work: Path,
    compiler: str,
    seconds: float,
    rows: list[dict[str, Any]],
    keep: Callable[[], None],
) -> None:
    """Eager against replay, single against multi-stream, per model and batch, until time is up.
    Each is added to `rows`, and kept before the next one, which may end the process."""
    from recreplay.capture import capture
    from recreplay.tools.bench.compare import Session
    from recreplay.tools.target import load_target

    end = time.monotonic() + seconds
    # One way of all models before the next way of any, so that little time tells something of each.
    for strategy, streams, way in WAYS:
        for name in MODELS:
            if time.monotonic() > end:
                skipped = {"model": name, "strategy": strategy, "way": way, "compiler": compiler}
                rows.append({**skipped, "skipped": "no time"})
                continue
            target = load_target(f"recreplay.models:{name}", [ROWS_SCALE])
            row = {"model": name, "strategy": strategy, "streams": streams, "compiler": compiler}
            row["way"] = way
            out = work / f"{name}-{compiler}-{len(rows)}.rr"
            try:
                capture(
                    target.model,
                    out=out,
                    buckets=BATCHES,
                    device="cuda",
                    strategy=strategy,
                    streams=streams,
                    compiler=compiler,
                    rewrites=rewrites_of(way),
                )
                begun = time.perf_counter()
                with Session(target, out, "cuda") as session:
                    ready = round(time.perf_counter() - begun, 3)
                    results = [session.compare(batch, 200).to_json() for batch in BATCHES]
                room = memory(out)
                copies = _copies(out) if way == "default" and streams > 1 else {}
            except Exception as error:  # of anything: the next model may do
                rows.append({**row, "error": f"{type(error).__name__}: {error}"[:2000]})
                keep()
                continue
            rows.append(
                {
                    **row,
                    "ready_seconds": ready,
                    **room,
                    "results": results,
                    "copies": copies,
                    "artifact": out.name,
                }
            )
            keep()
            print(
                f"{name}, {compiler}, {strategy} {streams}, rewrites {way}: "
                + ", ".join(
                    f"{r['batch']}: {r['eager_us']['p50']} -> {r['replay_us']['p50']} us"
                    for r in results
                ),
                flush=True,
            )


def add_costs(work: Path, rows: list[dict[str, Any]]) -> None:
    """What requests take of the host besides time, by a profiler, which may slow down all calls of
    CUDA after it: when all is timed. Of the default way, and of the latest compiler."""
    from recreplay.tools.bench.compare import Session
    from recreplay.tools.target import load_target

    timed = {row["model"]: row for row in rows if row.get("artifact") and row["way"] == "default"}
    for name, row in timed.items():
        target = load_target(f"recreplay.models:{name}", [ROWS_SCALE])
        with Session(target, work / row["artifact"], "cuda") as session:
            for found in row["results"]:
                found |= costs(session, found["batch"])


def serving(work: Path, compiler: str, seconds: float) -> dict[str, Any]:
    """What `recreplay saturate` measures, of DLRM."""
    from recreplay.capture import capture
    from recreplay.tools.load import saturate
    from recreplay.tools.target import load_target

    sizes, lanes, delays = [1, 64, 1024], [1, 2, 4], [None, 0, 200]
    target = load_target("recreplay.models:dlrm", [ROWS_SCALE])
    out = work / f"serving-{compiler}.rr"
    capture(target.model, out=out, buckets=sizes, device="cuda", compiler=compiler)
    # Of each size: lanes, delays, six kinds of coroutines at most, alone and beside Python.
    each = seconds / len(sizes) / (len(lanes) + len(delays) + 6 + 2)
    return saturate.measure(out, sizes, lanes, delays, min(each, 2.0), print)


def _copies(path: Path) -> dict[str, Any]:
    from recreplay.runtime.artifact import open_artifact
    from recreplay.tools.bench.copies import compare_copies

    found = compare_copies(open_artifact(path))
    return {str(size): copies.to_json() for size, copies in found.items()}


def costs(session: Session, batch: int) -> dict[str, Any]:
    """What a request of so many rows takes of the host, by eager and by replay."""
    import torch

    from recreplay.tools.bench.request_cost import request_cost
    from recreplay.tools.bench.requests import as_arrays

    request = session.requests(batch, 1)[0]
    call, arrays = session.eager.prepare(request), as_arrays(request)
    with torch.inference_mode():
        eager = request_cost(call).to_json()
    replay = request_cost(lambda: session.runtime.run(arrays)).to_json()
    return {"eager_cost": eager, "replay_cost": replay}


def main() -> int:
    import torch

    from recreplay.capture.compilers.toolchain import inductor_problem
    from recreplay.tools.bench.stamp import stamp

    parser = argparse.ArgumentParser(prog="recreplay.tools.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result files")
    parser.add_argument(
        "--root", type=Path, default=Path.cwd(), help="the checkout (has tests/gpu)"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas")
    parser.add_argument("--seconds", type=float, default=240.0, help="time for each part")
    arguments = parser.parse_args()
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
    arguments.out.mkdir(parents=True, exist_ok=True)
    heading: dict[str, Any] = {
        **stamp(torch.get_num_threads()),
        "device": torch.cuda.get_device_name(),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "cuda_bindings": _version("cuda-bindings"),
        "compiling": problem or "AOTInductor",
    }

    def write(part: str, found: object) -> None:
        target = arguments.out / f"gpu-{part}.json"
        target.write_text(json.dumps({**heading, part: found}, indent=1) + "\n")

    wrong = False
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        work, seconds = Path(folder), arguments.seconds
        for part in parts:
            if part == "tests":
                tests = run_tests(arguments.root, work, seconds)
                wrong = tests["exit_code"] != 0
                print(f"{tests['passed']} passed, {tests['skipped']} skipped", flush=True)
                write(part, tests)
            elif part == "bench":
                compilers = ["eager", *(["inductor"] if problem is None else [])]
                rows: list[dict[str, Any]] = []
                for compiler in compilers:
                    keep = partial(write, part, rows)
                    measure(work, compiler, seconds / len(compilers), rows, keep)
                try:
                    add_costs(work, rows)
                finally:
                    write(part, rows)
            elif part == "serving":
                write(part, serving(work, "eager" if problem else "inductor", seconds))
            elif part == "sanitizer":
                write(part, sanitize(work, seconds / 2))
            print(f"{part}: {arguments.out / f'gpu-{part}.json'}", flush=True)
    return int(wrong)


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
