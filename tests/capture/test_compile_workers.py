"""Processes that compile: what they are told, what they say, and how long they are kept."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recreplay.capture.compilers import compile_workers, inductor, toolchain
from recreplay.capture.compilers.compile_workers import compile_in_processes
from recreplay.capture.compilers.inductor import InductorCompiler
from recreplay.runtime.errors import CompilerError

# In the place of the one with inductor in it. Its package is the number of its process.
PROCESS = """
import json, os, sys
for line in sys.stdin:
    job = json.load(open(line.strip()))
    for key in job["codes"]:
        if key == "bad":
            sys.exit("a thing that no compiler knows")
        with open(os.path.join(job["target"], key), "w") as file:
            file.write(str(os.getpid()))
        print("a word of a library")
        print("compiled", key)
    print("done", flush=True)
"""
Compile = Callable[..., list[int]]


@pytest.fixture
def compile_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compile]:
    """Compiles keys, given as one list a job; returns the process of each key."""
    (tmp_path / "stand_in.py").write_text(PROCESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(compile_workers, "_MODULE", "stand_in")
    monkeypatch.setattr(compile_workers, "usable_cores", lambda: 2)
    kept: list[compile_workers.Worker] = []
    monkeypatch.setattr(compile_workers, "_kept", kept)

    def compile_keys(*jobs: list[str], keep: bool = True, **variables: str) -> list[int]:
        keys = [key for job in jobs for key in job]
        told = [{"codes": dict.fromkeys(job), "target": str(tmp_path)} for job in jobs]
        said: list[str] = []
        compile_in_processes(told, {**os.environ, **variables}, keep, said.append, len(keys))
        assert said[-1].startswith(f"compiled {len(keys)} of {len(keys)} segments")
        return [int((tmp_path / key).read_text()) for key in keys]

    yield compile_keys
    for worker in kept:
        worker.stop()


def test_jobs_have_a_process_each(compile_keys: Compile) -> None:
    a, b, c = compile_keys(["a", "b"], ["c"])
    assert a == b != c
    assert os.getpid() not in (a, c)


def test_the_next_jobs_go_to_the_same_processes(compile_keys: Compile) -> None:
    first = compile_keys(["a"], ["b"])
    assert compile_keys(["c"], ["d"]) == first
    assert compile_keys(["e"])[0] in first
    assert sorted(compile_keys(["a"], ["b"])) == sorted(first)  # one that had rested still does


def test_no_more_are_kept_than_there_are_cores(compile_keys: Compile) -> None:
    before = compile_keys(["a"], ["b"], ["c"], ["d"])
    assert set(compile_keys(["a"], ["b"], ["c"], ["d"])) & set(before) == set(before[2:])


def test_processes_that_are_not_kept_end(compile_keys: Compile) -> None:
    (process,) = compile_keys(["a"], keep=False)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize("how", ["killed", "rested too long", "another environment"])
def test_others_are_started_anew(
    compile_keys: Compile, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    before = compile_keys(["a"])
    variables = {}
    if how == "killed":
        os.kill(before[0], signal.SIGKILL)
        time.sleep(0.2)
    elif how == "rested too long":
        monkeypatch.setattr(compile_workers, "PATIENCE", 0)
    else:
        variables["TORCHINDUCTOR_CPP_WRAPPER"] = "1"
    assert compile_keys(["a"], **variables) != before


def test_one_that_dies_tells_its_last_words(compile_keys: Compile) -> None:
    kept = compile_keys(["a"])
    message = r"failed on a segment \(exit code 1\); `recreplay doctor` .*\na thing that no comp"
    with pytest.raises(CompilerError, match=message):
        compile_keys(["b", "bad"], ["c"])
    assert compile_keys(["d"]) != kept


def test_a_fork_of_this_process_leaves_them_alone(compile_keys: Compile) -> None:
    (process,) = compile_keys(["a"])
    child = os.fork()
    if child == 0:
        compile_workers._stop(compile_workers._kept)
        os._exit(0)
    os.waitpid(child, 0)
    assert compile_keys(["b"]) == [process]


@pytest.mark.parametrize(
    ("device", "threads"), [("cpu", None), ("cuda", None), ("cuda", "3"), ("cuda", "16")]
)
def test_for_cuda_they_look_for_no_vectors_and_share_the_cores(
    device: str, threads: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of torch 2.11 each would ask for itself what vectors the CPU has, one after the other."""
    names = "TORCHINDUCTOR_VEC_ISA_OK", "TORCHINDUCTOR_COMPILE_THREADS"
    for name in (*names, "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    if threads is not None:
        monkeypatch.setenv(names[1], threads)
    told: list[dict[str, str]] = []
    monkeypatch.setattr(inductor, "compile_in_processes", lambda *job: told.append(job[1]))
    monkeypatch.setattr(toolchain, "usable_cores", lambda: 8)
    InductorCompiler(1)._compile({"a": {}, "b": {}}, tmp_path, device, print)
    (environment,) = told
    wanted = (None, None) if device == "cpu" else ("0", "3" if threads == "3" else "4")
    assert tuple(map(environment.get, names)) == wanted


@pytest.mark.parametrize(("most", "jobs"), [(None, 5), ("2", 2), ("0", 1), ("16", 5), ("many", 5)])
def test_as_many_as_max_jobs_says(
    most: str | None, jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each imports torch, which takes the time of two segments: captures that run side by side,
    with a process for each core in each of them, took 131 s of a CPU where 46 do."""
    if most is None:
        monkeypatch.delenv("MAX_JOBS", raising=False)
    else:
        monkeypatch.setenv("MAX_JOBS", most)
    told: list[list[dict[str, Any]]] = []
    monkeypatch.setattr(inductor, "compile_in_processes", lambda *job: told.append(job[0]))
    monkeypatch.setattr(toolchain, "usable_cores", lambda: 5)
    codes: dict[str, object] = {name: {} for name in "abcdefg"}
    InductorCompiler(1)._compile(codes, tmp_path, "cuda", print)
    assert len(told[0]) == jobs
    assert sorted(key for job in told[0] for key in job["codes"]) == sorted(codes)
