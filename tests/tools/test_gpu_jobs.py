"""`gpu_jobs`: what jobs found is told at once, and none takes another along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until_gone

from recreplay.tools.gpu_jobs import run_jobs

Row = dict[str, Any]
Run = Callable[..., list[Row]]
BEGINNING = """
import os, time
from itertools import pairwise
from pathlib import Path
from recreplay.tools.gpu_jobs import do_jobs

def do(job, say, turns):
"""
ENDING = "\n\nif __name__ == '__main__':\n    do_jobs(do)\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Rows of jobs that do what some lines of Python say."""
    there = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{there}" if there else str(tmp_path))

    def run(
        lines: str, jobs: list[Row], seconds: float = 60, patience: float = 60, lanes: int = 1
    ) -> list[Row]:
        body = "".join(f"    {line}\n" for line in lines.splitlines())
        (tmp_path / "stand_in.py").write_text(BEGINNING + body + ENDING)
        found: list[Row] = []
        end = time.monotonic() + seconds
        run_jobs("stand_in", jobs, tmp_path / "work", end, patience, lanes, found.append)
        return found

    return run


def numbered(count: int) -> list[Row]:
    return [{"at": at} for at in range(count)]


def test_a_job_that_raises_is_told_and_the_others_go_on(run: Run) -> None:
    doing = "if job['at'] == 1:\n    raise ValueError('odd')\nsay({**job, 'pid': os.getpid()})"
    first, second, third = run(doing, numbered(3))
    assert second == {"at": 1, "error": "ValueError: odd"}
    assert first["pid"] == third["pid"]


def test_a_job_that_ends_its_process_is_told_and_another_process_goes_on(run: Run) -> None:
    doing = "print('last words', flush=True)\nsay(job)\nif job['at'] == 1:\n    os._exit(3)"
    found = run(doing, numbered(4))
    assert [row["at"] for row in found] == [0, 1, 1, 2, 3]  # what it said before is kept
    assert found[2]["error"] == "its process ended (exit code 3)"
    assert found[2]["tail"] == "last words\nlast words\n"


def test_a_job_may_be_the_last_of_its_process(run: Run) -> None:
    doing = "say({'pid': os.getpid()})"
    first, second, third = run(doing, [{}, {"last": True}, {}])
    assert first == second != third


def test_a_job_that_is_silent_is_ended_and_another_process_goes_on(run: Run) -> None:
    doing = "if job['at'] == 0:\n    time.sleep(600)\nsay(job)"
    found = run(doing, numbered(2), patience=3)
    assert found[0] == {"at": 0, "error": "nothing was heard of it for 3 s", "tail": ""}
    assert found[1] == {"at": 1}


def test_when_the_time_is_up_what_was_found_is_there(run: Run) -> None:
    doing = "if job['at'] == 1:\n    say({'half': 1})\n    time.sleep(600)\nsay(job)"
    begun = time.monotonic()
    found = run(doing, numbered(3), seconds=6)
    assert time.monotonic() - begun < 30
    assert found == [
        {"at": 0},
        {"half": 1},
        {"at": 1, "skipped": "no time"},
        {"at": 2, "skipped": "no time"},
    ]


def test_without_a_process_all_jobs_say_so(run: Run) -> None:
    found = run("pass", numbered(2), seconds=0)
    assert [row["skipped"] for row in found] == ["no time", "no time"]
    broken = "pass\nsay(job\n"  # no Python
    found = run(broken, numbered(2))
    assert [row["error"] for row in found] == ["its process ended (exit code 1)"] * 2
    assert all("SyntaxError" in row["tail"] for row in found)


def test_who_measures_is_alone(run: Run) -> None:
    """Beside each other they get ready; and who waits for that is not taken for one that hangs."""
    doing = """
with turns.beside():
    a = time.time()
    time.sleep(0.5)
    b = time.time()
with turns.alone():
    c = time.time()
    time.sleep(1.5)
    say({'ready': [a, b], 'alone': [c, time.time()]})
"""
    found = run(doing.strip("\n"), numbered(6), lanes=3, patience=4)
    assert len(found) == 6
    alone = sorted(row["alone"] for row in found)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(alone))
    for begin, end in (row["ready"] for row in found):
        assert not any(a < end and begin < b for a, b in alone)


def test_jobs_end_with_who_asked_for_them(run: Run, tmp_path: Path) -> None:
    """Even where that was killed: they would be in the way of whatever is measured next."""
    run("Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)", [], seconds=0)
    asked = "import time; from pathlib import Path; from recreplay.tools.gpu_jobs import run_jobs\n"
    asked += "run_jobs('stand_in', [{}], Path('w'), time.monotonic() + 600, 600, 1, print)"
    with subprocess.Popen([sys.executable, "-c", asked], cwd=tmp_path) as process:
        while not (tmp_path / "pid").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    wait_until_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("lanes", [1, 2])
def test_lanes_share_the_cores_to_compile_on(
    lanes: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    found = run("say({'jobs': os.environ['MAX_JOBS']})", numbered(2), lanes=lanes)
    assert [row["jobs"] for row in found] == [str(4 // lanes)] * 2
