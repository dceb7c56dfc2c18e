"""The command line as a whole: what a failure looks like, and the small commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from recreplay.models import MODELS
from recreplay.tools import machine
from recreplay.tools.cli import app

COMMAND = [sys.executable, "-m", "recreplay.tools.cli"]
Invoke = Callable[..., Result]


def test_help_lists_the_commands_without_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from recreplay.tools.cli import app;"
        "r = CliRunner().invoke(app, ['--help']); print(r.stdout);"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("models", "doctor", "capture", "inspect", "run", "bench", "demo"):
        assert name in done.stdout


def test_models(invoke: Invoke, report: Callable[..., Any]) -> None:
    listed = report("models")
    assert {m["name"]: m["table_bytes"] for m in listed} == {
        card.name: card.table_bytes for card in MODELS.values()
    }
    text = invoke("models").stdout
    assert "dlrm_rmc1" in text
    assert "4.1 GB" in text


def test_doctor(invoke: Invoke, report: Callable[..., Any]) -> None:
    found = report("doctor")
    assert {"python", "torch", "cpu", "C++ compiler"} <= {f["name"] for f in found["facts"]}
    assert found["choices"]["cpu"]["usable"]
    assert "What capture would choose" in invoke("doctor").stdout


def test_doctor_says_what_capture_does(
    captured: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.choices()["cpu"]["strategy"] == captured[1]["strategy"]
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    choice = machine.choices()["cpu"]
    assert choice["compiler"] == "eager"
    assert "no C++ compiler" in choice["problem"]


def test_errors_are_one_line_and_bugs_keep_their_traceback(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = invoke("inspect", tmp_path / "absent.rr")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: no artifact at ")
    assert len(result.stderr.splitlines()) == 1

    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("recreplay.runtime.artifact.open_artifact", broken)
    result = invoke("inspect", tmp_path / "absent.rr")
    assert isinstance(result.exception, KeyError)


def test_errors_of_files_are_one_line(
    invoke: Invoke, captured: tuple[Path, Any], model_file: Path, tmp_path: Path
) -> None:
    words = tmp_path / "words.npz"
    np.savez(words, dense=np.array(["a", "b"]))
    capture = ("capture", f"{model_file}:build", "--compiler", "eager", "--buckets", "2")
    (tmp_path / "folder").mkdir()
    for command, message in (
        ((*capture, "--out", "/proc/a.rr"), "/proc"),
        (
            (*capture, "--out", tmp_path / "a.rr", "--inputs", words),
            f"{words}: input 'dense' is an array of <U1, which torch does not have; expected num",
        ),
        (
            ("export", captured[0], "--onnx", "/proc/m.onnx"),
            "cannot write /proc/m.onnx: /proc: No such file or directory; choose another place",
        ),
        (
            ("export", captured[0], "--onnx", tmp_path / "folder", "--overwrite"),
            f"cannot write {tmp_path / 'folder'}: it is a directory; name a file in it",
        ),
        (("bench", f"{model_file}:build", "--out", tmp_path), f"cannot write {tmp_path}: it is a"),
    ):
        result = invoke(*command)
        assert result.exit_code == 1, result.stderr
        last = result.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert message in last
        assert "Traceback" not in result.stderr


def test_a_model_that_ends_the_process_does_not_pass_for_captured(
    invoke: Invoke, tmp_path: Path
) -> None:
    (tmp_path / "ends.py").write_text(
        "import sys, torch\n"
        "class Ends(torch.nn.Module):\n"
        "    def example_inputs(self, batch):\n"
        "        sys.exit()\n"
        "def build():\n"
        "    return Ends().eval()\n"
    )
    result = invoke("capture", f"{tmp_path / 'ends.py'}:build", "--out", tmp_path / "a.rr")
    assert result.exit_code == 1
    assert "ends.py:build called sys.exit(None) while it was captured" in result.stderr
    assert not (tmp_path / "a.rr").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("command", [["inspect", "ARTIFACT", "--json"], ["--help"]])
def test_a_result_that_cannot_be_written_is_an_error(
    captured: tuple[Path, Any], command: list[str]
) -> None:
    arguments = [str(captured[0]) if part == "ARTIFACT" else part for part in command]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot read or write: [Errno 28] No space left on device\n"


def test_an_output_that_is_closed_takes_nothing_and_is_no_error() -> None:
    """As a service's is, where whoever starts it gives it none."""
    command = 'exec "$0" -m recreplay.tools.cli models >&-'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_interrupt(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recreplay.runtime.artifact.open_artifact", stop)
    result = invoke("inspect", tmp_path)
    assert result.exit_code == 130
    assert result.stderr.strip() == "interrupted; nothing was written"


def test_an_interrupted_capture_leaves_nothing(tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time, torch\n"
        "class Slow(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        print('in forward', flush=True)\n"
        "        time.sleep(60)\n"
        "        return x\n"
        "    def example_inputs(self, batch):\n"
        "        return {'x': torch.zeros(batch, 2)}\n"
        "def build():\n"
        "    return Slow().eval()\n"
    )
    out = tmp_path / "out" / "slow.rr"
    process = subprocess.Popen(
        [*COMMAND, "capture", f"{slow}:build", "--out", str(out), "--compiler", "eager"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )
    assert process.stderr is not None
    while "in forward" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        stdout, stderr = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # so that it says where it hangs
        stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "interrupted; nothing was written" in stderr
    assert stdout == ""
    assert list(out.parent.iterdir()) == []


def test_every_command_has_help(invoke: Invoke) -> None:
    for command in app.registered_commands:
        result = invoke(command.name, "--help")
        assert result.exit_code == 0
