"""`python -m recreplay.tools.gpu_check --out DIR`: prove and measure the CUDA side on this machine.

Runs `tests/gpu` and a benchmark, and writes `gpu_check.json`, stamped with commit, device, driver
and versions. Nothing is installed or downloaded. Where CUDA headers for compiling are missing it
says so and proves eager segments alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

BATCHES = (1, 4, 16, 64, 256, 1024)
MODELS = (
    *("dlrm", "dlrm_rmc1", "dlrm_rmc3", "streamrec", "wide_deep", "mt_wide_deep"),
    *("microrec_47", "microrec_98"),
)
ROWS_SCALE = "rows_scale=0.05"
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


def measure(work: Path, compiler: str, seconds: float) -> list[dict[str, Any]]:
    """Eager against replay, single against multi-stream, per model and batch, until time is up."""
    from recreplay.capture import capture
    from recreplay.runtime.errors import RecReplayError
    from recreplay.tools.bench.compare import Session
    from recreplay.tools.target import load_target

    end = time.monotonic() + seconds
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        target = load_target(f"recreplay.models:{name}", [ROWS_SCALE])
        for strategy, streams, rewrites in WAYS:
            if time.monotonic() > end:
                rows.append({"model": name, "strategy": strategy, "skipped": "out of time"})
                continue
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
                    results = [session.compare(batch, 200).to_json() for batch in BATCHES]
            except (RecReplayError, RuntimeError) as error:
                rows.append({**row, "error": f"{type(error).__name__}: {error}"[:2000]})
                continue
            rows.append(
                {
                    **row,
                    "capture_seconds": manifest.capture_seconds,
                    "ready_seconds": ready,
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
