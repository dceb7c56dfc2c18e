"""`gpu_check`: the parts of it that say something on a machine without a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import wait_until_gone

from recreplay.capture import capture
from recreplay.tools import gpu_bench, gpu_check, gpu_first, gpu_peers, gpu_tests
from recreplay.tools.bench.compare import Session
from recreplay.tools.gpu_tests import run_tests
from recreplay.tools.target import load_target


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_there_is_nothing_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_check", "--out", str(tmp_path / "out")])
    assert gpu_check.main() == 1
    assert capsys.readouterr().err == "error: no CUDA device here, so there is nothing to check\n"
    assert not list(tmp_path.iterdir())


def test_requests_cost_time_of_cores_and_calls(tmp_path: Path) -> None:
    target = load_target("recreplay.models:ncf", ["rows_scale=0.001"])
    capture(target.model, out=tmp_path / "ncf.rr", buckets=[4], compiler="eager")
    with Session(target, tmp_path / "ncf.rr") as session:
        found = gpu_bench.costs(session, 4)
    for side in ("eager_cost", "replay_cost"):
        assert 0 < found[side]["cpu_us"] < 1e6
        assert found[side]["calls"] == {}  # of CUDA
    assert found["replay_ran"] == []


def test_where_there_is_no_sanitizer_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "_path_with_cuda", lambda: str(tmp_path))
    assert gpu_check.sanitize(tmp_path, 60) == {
        "absent": "compute-sanitizer is not on this machine"
    }


def test_the_sanitizer_runs_a_capture_for_each_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *racecheck*) exit 99;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_check, "_path_with_cuda", lambda: str(tmp_path))
    found = gpu_check.sanitize(tmp_path, 60)
    assert {check: result["exit_code"] for check, result in found.items()} == {
        "memcheck": 0,
        "racecheck": 99,
    }
    for check, result in found.items():
        assert result["tail"].startswith(f"--tool {check} --error-exitcode 99 ")
        assert "capture recreplay.models:microrec_47" in result["tail"]
        assert "--device cuda" in result["tail"]


def test_every_way_is_one_that_can_be_captured() -> None:
    from recreplay.capture import REWRITES
    from recreplay.capture.assign import STRATEGIES

    for strategy, streams, way in (*gpu_bench.WAYS, gpu_peers.WAY, *gpu_peers.OTHERS):
        assert strategy in STRATEGIES
        assert streams >= 1
        assert set(gpu_bench.rewrites_of(way)) <= set(REWRITES)


def test_ways_without_rewrites_are_on_one_two_four_and_eight_streams() -> None:
    plain = {s for strategy, s, way in gpu_bench.WAYS if way == "none" and strategy != "feature"}
    assert plain == {1, 2, 4, 8}


def test_what_matters_most_is_measured_first() -> None:
    jobs = gpu_bench.jobs(["inductor", "eager"])
    assert (jobs[0]["compiler"], jobs[0]["way"]) == ("inductor", "default")
    told = [(j["compiler"], j["strategy"], j["streams"], j["way"], j["model"]) for j in jobs]
    assert len(told) == len({*told}) == (2 * len(gpu_bench.WAYS) + 1) * len(gpu_bench.MODELS)
    # Lookups in one or apart, and the streams, of three models, in the time of some two dozen jobs.
    for model in gpu_bench.MODELS[:3]:
        found = {(way, streams) for _, _, streams, way, name in told[:21] if name == model}
        plain = {("none", streams) for streams in (1, 2, 4, 8)}
        assert found == {("default", 8), ("default", 1), ("lookups apart", 8)} | plain
    beside, alone = gpu_peers.jobs("inductor", 0.0)
    assert {job["model"] for job in beside} >= {
        *("ncf", "wide_deep", "mt_wide_deep", "dlrm_rmc1", "dlrm_rmc2", "dlrm_rmc3"),
        *("din", "dien", "microrec_47", "microrec_98"),
    }
    for job in (*beside, *alone):
        assert job["batches"][0] == 1
        assert job["arguments"] == [] or job["model"] == "microrec_98"
    assert {job["model"] for job in alone} == {job["model"] for job in beside}
    assert gpu_peers.jobs("eager", 0.0)[1] == []  # what compiles cannot be there


STAND_IN = """
import os, time
from recreplay.tools.gpu_jobs import do_jobs

def do(job, say, turns):
    say({"model": "own", "pid": os.getpid()})
    time.sleep(600)

if __name__ == "__main__":
    do_jobs(do)
"""
ON_NO_GPU = """
import sys
import torch
from recreplay.tools import gpu_check, gpu_peers

torch.cuda.is_available = lambda: True
torch.cuda.get_device_name = lambda: "none"
gpu_check._path_with_cuda = lambda: ""
gpu_peers.__name__, gpu_peers.jobs = "stand_in", lambda *_: ([{"model": "own"}], [])
sys.argv += ["--out", "out", "--parts", "sanitizer,peers", "--seconds", "900", "--commit", "c0ffee"]
raise SystemExit(gpu_check.main())
"""


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
def test_what_was_found_is_kept_when_it_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_by: signal.Signals
) -> None:
    """At once, and with all that it started."""
    there = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{there}" if there else str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    found = tmp_path / "out" / "gpu-peers.json"
    with subprocess.Popen([sys.executable, "-c", ON_NO_GPU], cwd=tmp_path) as process:
        while not found.exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(ended_by)
        assert process.wait(30) == 128 + ended_by
    told = json.loads(found.read_text())
    (row,) = told["peers"]
    absent = json.loads(found.with_name("gpu-sanitizer.json").read_text())
    assert absent["sanitizer"] == {"absent": "compute-sanitizer is not on this machine"}
    assert row["model"] == "own"
    assert told["device"] == "none"
    assert told["commit"]
    wait_until_gone(row["pid"])
    assert list(tmp_path.glob("gpu-check-*")) == []


COMPILES_NOTHING = """
import sys
import torch
from recreplay.capture.compilers import toolchain
from recreplay.tools import gpu_check, gpu_first, gpu_peers

torch.cuda.is_available = lambda: True
torch.cuda.get_device_name = lambda: "none"
toolchain.inductor_problem = lambda device: None
problem = sys.argv.pop(1) or None
gpu_first.compiled_problem = lambda *_: problem
gpu_peers.__name__, gpu_peers.jobs = "stand_in", lambda *told: ([{"compiler": told[0]}], [])
sys.argv += ["--out", "out", "--parts", "peers"]
raise SystemExit(gpu_check.main())
"""


@pytest.mark.parametrize(("problem", "compiler"), [("", "inductor"), ("no -lcuda", "eager")])
def test_what_cannot_be_compiled_is_told_once_and_the_rest_measured(
    problem: str, compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{there}" if there else str(tmp_path))
    (tmp_path / "stand_in.py").write_text(STAND_IN.replace("time.sleep(600)", "say(job)"))
    command = [sys.executable, "-c", COMPILES_NOTHING, problem]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (f"NOTICE: {problem}; eager" in done.stderr) == bool(problem)
    told = json.loads((tmp_path / "out" / "gpu-peers.json").read_text())
    assert told["compiling"] == (problem or "AOTInductor")
    assert told["peers"][1]["compiler"] == compiler


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which it may work")
def test_the_first_job_says_why_nothing_is_compiled(tmp_path: Path) -> None:
    problem = gpu_first.compiled_problem(tmp_path, time.monotonic() + 120)
    assert problem is not None
    assert "no CUDA device is usable here" in problem


# Tests in processes of their own. Where there is no GPU, files of the same form stand for them.

BREAKS = """
import pytest
from pathlib import Path

@pytest.mark.parametrize("at", range(5))
def test_in_order(at):
    Path(f"ran{at}").touch()
    if at == 1 and not Path("broken").exists():
        Path("broken").touch()
        pytest.exit("the CUDA context is broken", returncode=7)
    assert at != 3
"""


def checkout(root: Path, **files: str) -> Path:
    folder = root / "tests" / "gpu"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    return root


def test_a_file_goes_on_behind_the_test_that_broke_its_context(tmp_path: Path) -> None:
    """What ran is not run again, and is counted once."""
    root = checkout(tmp_path / "root", breaks=BREAKS, fine="def test_it():\n    pass\n")
    found = run_tests(root, tmp_path, 60)
    assert {p.name for p in root.iterdir()} >= {f"ran{at}" for at in range(5)}
    ran = found["files"]["test_breaks.py"]
    assert ran["processes"] == 2
    assert found["files"]["test_fine.py"]["processes"] == 1
    assert found["exit_code"] == 1
    failed = [c["id"] for c in found["not_passed"]]
    assert "tests/gpu/test_breaks.py::test_in_order[3]" in failed
    assert found["passed"] + len(failed) == ran["cases"] + 1


def test_what_ran_before_and_after_a_process_died_is_kept(tmp_path: Path) -> None:
    dies = "import os\n\ndef test_a():\n    pass\n\ndef test_b():\n    os.abort()\n"
    root = checkout(tmp_path / "root", dies=dies + "\ndef test_c():\n    pass\n")
    found = run_tests(root, tmp_path, 60)
    assert (found["passed"], found["exit_code"]) == (2, 1)
    assert found["not_passed"] == [
        {
            "id": "tests/gpu/test_dies.py::test_b",
            "outcome": "failed",
            "message": "the process ended meanwhile",
        }
    ]


def test_a_process_that_dies_ends_its_file_alone(tmp_path: Path) -> None:
    dies = "import os\n\ndef test_it():\n    os.abort()\n"
    root = checkout(tmp_path / "root", dies=dies, fine="def test_it():\n    pass\n")
    found = run_tests(root, tmp_path, 60)
    assert found["passed"] == 1
    assert found["exit_code"] != 0
    assert found["files"]["test_dies.py"]["exit_code"] != 0


def test_without_time_nothing_is_claimed(tmp_path: Path) -> None:
    slow = "import time\n\ndef test_it():\n    time.sleep(30)\n"
    found = run_tests(checkout(tmp_path / "root", slow=slow), tmp_path, 3)
    assert found["passed"] == 0
    assert found["exit_code"] == 1
    assert found["files"]["test_slow.py"]["tail"].startswith("no time")


def test_a_test_that_time_ends_did_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [("a", "begun", ""), ("a", "passed", ""), ("b", "failed", "odd"), ("c", "begun", "")]
    lines = [json.dumps({"id": i, "outcome": o, "message": m}) + "\n" for i, o, m in told]

    def late(*given: object) -> tuple[None, str]:
        (tmp_path / "test_it.py.jsonl").write_text("".join(lines))
        return None, ""

    monkeypatch.setattr(gpu_tests, "run_limited", late)
    found = run_tests(checkout(tmp_path / "root", it=""), tmp_path, 60)
    assert (found["passed"], found["exit_code"]) == (1, 1)
    assert found["not_passed"] == [
        {"id": "b", "outcome": "failed", "message": "odd"},
        {"id": "c", "outcome": "unfinished", "message": "no time"},
    ]


def test_a_test_that_never_ends_takes_no_other_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tests, "PATIENCE", 12.0)  # and a process begins within
    hangs = "import time\n\ndef test_a():\n    time.sleep(600)\n\ndef test_b():\n    pass\n"
    found = run_tests(checkout(tmp_path / "root", hangs=hangs), tmp_path, 120)
    assert (found["passed"], found["exit_code"]) == (1, 1)
    assert found["not_passed"] == [
        {
            "id": "tests/gpu/test_hangs.py::test_a",
            "outcome": "failed",
            "message": "the process ended meanwhile",
        }
    ]


def test_what_is_known_so_far_is_kept_whenever_a_file_is_done(tmp_path: Path) -> None:
    files = dict.fromkeys(("a", "b", "c_alone"), "def test_it():\n    pass\n")
    kept: list[int] = []
    root = checkout(tmp_path / "root", **files)
    run_tests(root, tmp_path, 60, lambda verdict: kept.append(verdict["passed"]))
    assert kept == [1, 2, 3]


def test_what_ran_before_the_time_was_up_is_kept(tmp_path: Path) -> None:
    slow = "import time\n\ndef test_it():\n    pass\n\ndef test_slow():\n    time.sleep(90)\n"
    found = run_tests(checkout(tmp_path / "root", slow=slow), tmp_path, 15)
    assert found["passed"] == 1
    assert found["exit_code"] == 1


def test_long_files_are_shared_and_timed_ones_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tests, "SHARES", {"test_many.py": 2})
    noted = "import os, time\nfrom pathlib import Path\n\ndef test_it():\n"
    noted += "    Path(os.environ['RECREPLAY_GPU_SHARE'].replace('/', '-')).touch()\n"
    timed = "from pathlib import Path\n\ndef test_it():\n    assert Path('1-2').exists()\n"
    root = checkout(tmp_path / "root", many=noted, a_alone=timed)
    found = run_tests(root, tmp_path, 60)
    assert found["exit_code"] == 0
    assert {*found["files"]} == {"test_many.py 0/2", "test_many.py 1/2", "test_a_alone.py"}
    assert {p.name for p in root.iterdir()} >= {"0-2", "1-2"}
