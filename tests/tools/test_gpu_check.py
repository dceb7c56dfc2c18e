"""`gpu_check`: the parts of it that say something on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recreplay.capture import capture
from recreplay.tools import gpu_check, gpu_tests
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
        found = gpu_check.costs(session, 4)
    for side in ("eager_cost", "replay_cost"):
        assert 0 < found[side]["cpu_us"] < 1e6
        assert found[side]["calls"] == {}  # of CUDA


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

    for strategy, streams, way in gpu_check.WAYS:
        assert strategy in STRATEGIES
        assert streams >= 1
        assert set(gpu_check.rewrites_of(way)) <= set(REWRITES)


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


def test_what_ran_before_the_time_was_up_is_kept(tmp_path: Path) -> None:
    slow = "import time\n\ndef test_it():\n    pass\n\ndef test_slow():\n    time.sleep(90)\n"
    found = run_tests(checkout(tmp_path / "root", slow=slow), tmp_path, 6)
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
