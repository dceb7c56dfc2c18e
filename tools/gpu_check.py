"""`python -m recreplay.tools.gpu_check --out DIR`: prove and measure the CUDA side on this machine.

Runs `tests/gpu`, compute-sanitizer on one small capture where there is one, and a benchmark, and
writes `gpu_check.json`, stamped with commit, device, driver and versions. Nothing is installed or
downloaded. Where CUDA headers for compiling are missing it says so and proves eager segments alone.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from recreplay.tools.bench.compare import Session

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
MODELS = (
    *("dlrm", "dlrm_rmc1", "dlrm_rmc3", "streamrec", "wide_deep", "mt_wide_deep"),
    *("microrec_47", "microrec_98"),
)
ROWS_SCALE = "rows_scale=0.05"
_SANITIZED = 240  # seconds for a check, which slows kernels down many times
_STACKED = ("stack_lookups", "stack_branches", "inline_linears")
# Strategy, streams, rewrites: one stream with lookups grouped and not, then the branches as they
# are, then with one lookup for all, and last each on a stream of its own, so that no order is there
# but that of the data.
WAYS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("single", 1, ("group_lookups", *_STACKED)),
    ("single", 1, _STACKED),
    ("matching", 2, ()),
    ("matching", 8, ()),
    ("matching", 8, ("group_lookups",)),
    ("feature", 8, ()),
    ("feature", 512, ()),
)


def run_tests(root: Path, work: Path) -> dict[str, Any]:
    """The verdict of `tests/gpu`: counts, and the failures in their own words."""
    report = work / "tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(root / "tests" / "gpu"),
        "-q",
        f"--junitxml={report}",
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    cases = [
        {
            "name": f"{case.get('classname')}::{case.get('name')}",
            "outcome": next(
                (c.tag for c in case if c.tag in ("failure", "error", "skipped")), "passed"
            ),
            "message": next((str(c.get("message"))[:2000] for c in case), ""),
        }
        for case in suite.iter("testcase")
    ]
    return {
        "exit_code": done.returncode,
        "passed": sum(c["outcome"] == "passed" for c in cases),
        "skipped": sum(c["outcome"] == "skipped" for c in cases),
        "not_passed": [c for c in cases if c["outcome"] != "passed"],
        "tail": done.stdout[-3000:],
    }


def sanitize(work: Path) -> dict[str, Any]:
    """What compute-sanitizer says of a capture of several streams and the grouped kernel, which
    records, replays and verifies it."""
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
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SANITIZED)
        except subprocess.TimeoutExpired:
            found[check] = {"absent": f"not done after {_SANITIZED} s"}
            continue
        found[check] = {"exit_code": done.returncode, "tail": (done.stdout + done.stderr)[-1500:]}
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


def measure(work: Path, compiler: str, seconds: float) -> list[dict[str, Any]]:
    """Eager against replay, single against multi-stream, per model and batch, until time is up."""
    from recreplay.capture import capture
    from recreplay.runtime.errors import RecReplayError
    from recreplay.tools.bench.compare import Session
    from recreplay.tools.target import load_target

    end = time.monotonic() + seconds
    rows: list[dict[str, Any]] = []
    # One way of all models before the next way of any, so that little time tells something of each.
    for strategy, streams, rewrites in WAYS:
        for name in MODELS:
            if time.monotonic() > end:
                rows.append({"model": name, "strategy": strategy, "skipped": "out of time"})
                continue
            target = load_target(f"recreplay.models:{name}", [ROWS_SCALE])
            row = {"model": name, "strategy": strategy, "streams": streams, "compiler": compiler}
            row["rewrites"] = rewrites
            out = work / f"{name}-{strategy}-{streams}-{'group_lookups' in rewrites}.rr"
            try:
                manifest = capture(
                    target.model,
                    out=out,
                    buckets=BATCHES,
                    device="cuda",
                    strategy=strategy,
                    streams=streams,
                    compiler=compiler,
                    rewrites=rewrites,
                )
                begun = time.perf_counter()
                with Session(target, out, "cuda") as session:
                    ready = round(time.perf_counter() - begun, 3)
                    results = [_one(session, batch) for batch in BATCHES]
                room = memory(out)
            except (RecReplayError, RuntimeError) as error:
                rows.append({**row, "error": f"{type(error).__name__}: {error}"[:2000]})
                continue
            rows.append(
                {
                    **row,
                    "capture_seconds": manifest.capture_seconds,
                    "ready_seconds": ready,
                    **room,
                    "results": results,
                }
            )
            print(
                f"{name} {strategy} {streams} ({', '.join(rewrites) or 'no rewrites'}): "
                + ", ".join(
                    f"{r['batch']}: {r['eager_us']['p50']} -> {r['replay_us']['p50']} us"
                    for r in results
                ),
                flush=True,
            )
    return rows


def _one(session: Session, batch: int) -> dict[str, Any]:
    """Latencies, and what a request takes of the host, of one batch size."""
    import torch

    from recreplay.tools.bench.request_cost import request_cost
    from recreplay.tools.bench.requests import as_arrays

    found = session.compare(batch, 200).to_json()
    request = session.requests(batch, 1)[0]
    call, arrays = session.eager.prepare(request), as_arrays(request)
    with torch.inference_mode():
        found["eager_cost"] = request_cost(call).to_json()
    found["replay_cost"] = request_cost(lambda: session.runtime.run(arrays)).to_json()
    return found


def main() -> int:
    import torch

    from recreplay.capture.compilers.toolchain import inductor_problem
    from recreplay.tools.bench.stamp import stamp

    parser = argparse.ArgumentParser(prog="recreplay.tools.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_check.json")
    parser.add_argument(
        "--root", type=Path, default=Path.cwd(), help="the checkout (has tests/gpu)"
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="time for the benchmark")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: no CUDA device here, so there is nothing to check", file=sys.stderr)
        return 1
    problem = inductor_problem("cuda")
    if problem is not None:
        print(f"NOTICE: {problem}; only eager segments are checked", file=sys.stderr)
    arguments.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        **stamp(torch.get_num_threads()),
        "device": torch.cuda.get_device_name(),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "cuda_bindings": _version("cuda-bindings"),
        "compiling": problem or "AOTInductor",
    }
    target = arguments.out / "gpu_check.json"
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        report["tests"] = run_tests(arguments.root, Path(work))
        target.write_text(json.dumps(report, indent=1))  # kept even if the benchmark dies
        report["sanitizer"] = sanitize(Path(work))
        report["bench"] = measure(Path(work), "eager", arguments.seconds / 2)
        target.write_text(json.dumps(report, indent=1))
        if problem is None:
            report["bench"] += measure(Path(work), "inductor", arguments.seconds / 2)
    target.write_text(json.dumps(report, indent=1))
    tests = report["tests"]
    print(f"tests: {tests['passed']} passed, {tests['skipped']} skipped; report: {target}")
    return int(tests["exit_code"] != 0)


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
