"""An artifact is there whole, or not at all, whatever ends the capture."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from recreplay.capture import capture, pipeline, writer
from recreplay.capture.writer import artifact_folder, save_tensors
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import CaptureError, ParityError
from recreplay.runtime.lane import Lane
from recreplay.runtime.loading import LaneLoader

X = torch.arange(12, dtype=torch.float32).reshape(4, 3)


class Scaled(nn.Module):
    """x times a number that is not part of the model's weights."""

    factor = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def make(out: Path, model: nn.Module | None = None, **options: Any) -> None:
    model = model or Scaled()
    capture(model.eval(), (X,), out=out, buckets=[2], compiler="eager", **options)


def answer(path: Path) -> Any:
    with Runtime.load(path) as runtime:
        return runtime.run({"x": X.numpy()})["output"]


def tree(folder: Path) -> dict[str, str]:
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def test_every_file_is_listed_with_its_digest(tmp_path: Path) -> None:
    make(tmp_path / "m.rr")
    found = tree(tmp_path / "m.rr")
    assert {"manifest.json", "manifest.sha256"} <= set(found)
    seals = {name: found.pop(name) for name in ("manifest.json", "manifest.sha256")}
    assert open_artifact(tmp_path / "m.rr").manifest.files == found
    assert (tmp_path / "m.rr" / "manifest.sha256").read_text() == seals["manifest.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.rr"]


# Interrupted

STEPS = ("exporting", "bucket 2", "writing weights", "recording and verifying")


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_capture_leaves_nothing(
    tmp_path: Path, step: str, kind: type[BaseException]
) -> None:
    def stop(message: str) -> None:
        if message.startswith(step):
            raise kind("stopped here")

    with pytest.raises(kind, match="stopped here"):
        make(tmp_path / "m.rr", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """As a limit on the size of files, which can be set here, is one as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(CaptureError, match=r"^cannot write .*\.safetensors: .*too large"):
            make(tmp_path / "m.rr", nn.Linear(X.shape[1], 100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_overwrite_leaves_the_old_artifact(tmp_path: Path, step: str) -> None:
    def stop(message: str) -> None:
        if message.startswith(step):
            raise KeyboardInterrupt

    make(tmp_path / "m.rr")
    before = tree(tmp_path / "m.rr")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "m.rr", overwrite=True, progress=stop)
    assert tree(tmp_path / "m.rr") == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.rr"]


KILLED = """
    import os, signal, sys, torch
    from recreplay.capture import capture

    class Doubled(torch.nn.Module):
        def forward(self, x):
            return x * 2

    def die(message):
        if message.startswith(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

    x = torch.ones(4, 3)
    capture(Doubled().eval(), (x,), out=sys.argv[1], buckets=[2], compiler="eager", progress=die)
"""


@pytest.mark.parametrize("step", ["writing weights", "recording and verifying"])
def test_a_killed_capture_leaves_no_artifact_and_the_next_one_cleans_up(
    tmp_path: Path, step: str
) -> None:
    out = tmp_path / "m.rr"
    code = textwrap.dedent(KILLED)
    done = subprocess.run([sys.executable, "-c", code, str(out), step], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".m.rr.capturing-")
    make(out)
    assert [p.name for p in tmp_path.iterdir()] == ["m.rr"]
    np.testing.assert_array_equal(answer(out), X * 2)


def test_a_leftover_of_a_process_with_our_number_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f".m.rr.capturing-{os.getpid()}"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"torn")
    make(tmp_path / "m.rr")
    assert [p.name for p in tmp_path.iterdir()] == ["m.rr"]


def test_the_folder_of_a_capture_that_still_runs_is_kept(tmp_path: Path) -> None:
    other = tmp_path / f".m.rr.capturing-{os.getppid()}"
    other.mkdir()
    make(tmp_path / "m.rr")
    assert other.is_dir()


def test_a_name_with_wildcards_is_taken_as_it_is(tmp_path: Path) -> None:
    bystander = tmp_path / ".m1.rr.capturing-99999999"
    left = tmp_path / ".m[1].rr.capturing-99999999"
    for folder in (bystander, left):
        folder.mkdir()
    make(tmp_path / "m[1].rr")
    assert sorted(p.name for p in tmp_path.iterdir()) == [bystander.name, "m[1].rr"]


def test_two_captures_to_one_place_at_once_are_refused(tmp_path: Path) -> None:
    message = r"m\.rr is being captured by this process already$"
    with artifact_folder(tmp_path / "m.rr", False), pytest.raises(CaptureError, match=message):
        make(tmp_path / "m.rr")
    assert (tmp_path / "m.rr").is_dir()


def test_a_capture_that_begins_at_the_same_moment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread's, while the first still looks for what killed ones left."""
    (tmp_path / ".m.rr.capturing-99999999").mkdir()
    refused: list[str] = []

    def meanwhile(number: str) -> bool:
        monkeypatch.undo()
        with pytest.raises(CaptureError) as caught, artifact_folder(tmp_path / "m.rr", False):
            pass
        refused.append(str(caught.value))
        return False

    monkeypatch.setattr(writer, "is_alive", meanwhile)
    make(tmp_path / "m.rr")
    assert refused == [f"{tmp_path / 'm.rr'} is being captured by this process already"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.rr"]


# Existing artifacts


def test_an_existing_artifact_is_not_overwritten_unasked(tmp_path: Path) -> None:
    make(tmp_path / "m.rr")
    before = tree(tmp_path / "m.rr")
    with pytest.raises(CaptureError, match=r"m\.rr exists already; choose another place, or over"):
        make(tmp_path / "m.rr")
    assert tree(tmp_path / "m.rr") == before


def test_something_else_is_never_overwritten(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("ten years")
    file = tmp_path / "file"
    file.write_text("here")
    for out in (precious, file):
        with pytest.raises(CaptureError, match=r"exists and is not an artifact, so it is not over"):
            make(out, overwrite=True)
    assert (precious / "thesis.txt").read_text() == "ten years"
    assert file.read_text() == "here"


def test_overwriting_replaces_the_whole_artifact(tmp_path: Path) -> None:
    make(tmp_path / "m.rr")
    (tmp_path / "m.rr" / "stray").write_text("not of the new one")
    model = Scaled()
    model.factor = 5.0
    make(tmp_path / "m.rr", model, overwrite=True)
    np.testing.assert_array_equal(answer(tmp_path / "m.rr"), X * 5)
    assert not (tmp_path / "m.rr" / "stray").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["m.rr"]


def test_a_failed_replacement_puts_the_old_artifact_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "m.rr")
    before = tree(tmp_path / "m.rr")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if "capturing" in self.name and "old" not in self.name:
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        make(tmp_path / "m.rr", overwrite=True)
    assert tree(tmp_path / "m.rr") == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.rr"]


def test_folders_above_are_made(tmp_path: Path) -> None:
    make(tmp_path / "a" / "b" / "m.rr")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["m.rr"]


# Parity


def test_a_replay_unlike_eager_writes_nothing(tmp_path: Path) -> None:
    model = Scaled()

    def drift(message: str) -> None:
        if message == "writing weights":
            model.factor = 2.001  # what eager computes from now on

    message = (
        r"^bucket 2, [12] rows: output 'output' differs from the eager model by .* nothing was"
    )
    with pytest.raises(ParityError, match=message):
        make(tmp_path / "m.rr", model, progress=drift)
    assert list(tmp_path.iterdir()) == []


def test_the_weights_of_an_artifact_go_when_the_capture_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the next collection of garbage: tables take gigabytes."""
    loaded: list[weakref.ref[Tensor]] = []

    class Watched(LaneLoader):
        def lane(self) -> Lane:
            loaded.extend(weakref.ref(weight) for weight in self.weights.values())
            return super().lane()

    monkeypatch.setattr(pipeline, "LaneLoader", Watched)
    make(tmp_path / "m.rr", nn.Linear(3, 2))
    assert len(loaded) == 2
    assert [weight() for weight in loaded] == [None, None]


def test_the_tolerance_is_the_callers(tmp_path: Path) -> None:
    model = Scaled()

    def drift(message: str) -> None:
        if message == "writing weights":
            model.factor = 2.001

    make(tmp_path / "m.rr", model, progress=drift, rtol=1e-2)
    (parity,) = open_artifact(tmp_path / "m.rr").manifest.parity
    assert (parity.bucket, parity.requests, parity.rtol, parity.atol) == (2, 2, 1e-2, 1e-5)
    assert 4e-4 < parity.max_rel < 6e-4


# Files


def test_tensors_that_share_memory_are_written_each_for_itself(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    save_tensors(tmp_path / "t.safetensors", {"a": whole, "b": whole[1], "c": whole.t()})
    again = load_file(tmp_path / "t.safetensors")
    assert torch.equal(again["a"], whole)
    assert torch.equal(again["b"], whole[1])
    assert torch.equal(again["c"], whole.t())


def test_everything_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = writer._sync

    def note(path: Path) -> None:
        assert path == tmp_path or not (tmp_path / "m.rr").exists()
        synced.append(path.name)
        sync(path)

    monkeypatch.setattr(writer, "_sync", note)
    make(tmp_path / "m.rr")
    files = [f.name for f in (tmp_path / "m.rr").rglob("*")]
    assert sorted(synced[: len(files)]) == sorted(files)
    assert synced[len(files) + 1 :] == [tmp_path.name]
