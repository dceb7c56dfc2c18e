from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import Result

from recreplay.capture import capture
from recreplay.capture.compilers import toolchain
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.loading import LaneLoader
from recreplay.tools import tables
from recreplay.tools.console import Progress, report_error, report_notice, show

Invoke = Callable[..., Result]


def test_summary(captured: tuple[Path, Any]) -> None:
    out, summary = captured
    assert [b["size"] for b in summary["buckets"]] == [2, 8]
    assert summary["compiler"] == "eager"
    assert summary["notices"] == []
    assert summary["disk_bytes"] == sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    for bucket in summary["buckets"]:
        assert bucket["parity"]["max_abs"] <= 1e-5
        assert bucket["streams"] == 1
        assert bucket["waits"] == 0


def test_inspect(captured: tuple[Path, Any], invoke: Invoke, report: Callable[..., Any]) -> None:
    out, summary = captured
    assert report("inspect", out) == summary
    assert summary["inputs"][1]["rows_of_table"][0]["rows"] == 50
    memory = summary["memory"]
    assert memory["lane_bytes"] == memory["staging_bytes"] + memory["buffer_bytes"]
    (stack,) = summary["stacks"]
    assert stack["rows"] == 100
    refused = invoke("inspect", out, "--measure")  # whose times no table has
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "--measure says its times in JSON only: add --json" in refused.stderr
    text = invoke("inspect", out).stdout
    for word in ("Buckets", "ids_0 … ids_1", "Stacked tables", "made for instructions"):
        assert word in text


def test_memory_is_what_a_runtime_holds(
    tmp_path: Path, invoke: Invoke, report: Callable[..., Any]
) -> None:
    """Weights that are made of others, and copies of some, in bfloat16 and of a stack too."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 6)
            self.heads = nn.ModuleList(
                nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)) for _ in range(3)
            )
            self.top = nn.Linear(15, 7)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table(ids)
            found: torch.Tensor = self.top(torch.cat([head(x) for head in self.heads], 1))
            return found

    for precision in ("fp32", "bf16"):
        out = tmp_path / f"{precision}.rr"
        capture(
            Heads().eval(),
            {"ids": torch.randint(0, 9, (4,))},
            out=out,
            buckets=[2],
            compiler="eager",
            precision=precision,
        )
        memory = report("inspect", out)["memory"]
        artifact = open_artifact(out)
        loader = LaneLoader(artifact, "cpu", "error")
        made = [loader.weights[name] for name in loader.made]
        assert len(made) == 6
        assert memory["made_bytes"] == sum(t.nbytes for t in made) > 0
        assert memory["copied_bytes"] == sum(t.nbytes for t in loader.copies.values()) > 0
    assert "of them made of others" in invoke("inspect", out).stdout


def test_long_names_leave_room_for_their_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(tables.pairs(None, [("max error of " + "n" * 150, "1.2e-07"), ("size", "4.2 MB")]))
    show(tables.table(None, ("name", "rows>"), [("n" * 150, 7_777)]))
    shown = capsys.readouterr().out
    for value in ("1.2e-07", "4.2 MB", "7777"):
        assert value in shown
    assert shown.count("n" * 20) >= 2
    assert "…" not in shown


def test_names_with_brackets_are_shown_as_they_are(
    tmp_path: Path, invoke: Invoke, report: Callable[..., Any]
) -> None:
    """Rich takes `[dim]` for a style, which hides it, fails on a `[/x]` that closes nothing, and
    makes a picture of `:100:`."""
    model = (
        "import torch\n"
        "class Odd(torch.nn.Linear):\n"
        "    def example_inputs(self, batch):\n"
        "        return {'input': torch.randn(batch, self.in_features)}\n"
        "Odd.__name__ = Odd.__qualname__ = '[/x] :100:'\n"
        "def build():\n"
        "    return Odd(4, 1).eval()\n"
    )
    folder = tmp_path / "[dim]"
    folder.mkdir()
    (folder / "odd.py").write_text(model)
    out = folder / "odd.rr"
    settings = ("--buckets", "2", "--compiler", "eager")
    result = invoke("capture", f"{folder / 'odd.py'}:build", "--out", out, *settings)
    assert result.exit_code == 0, result.stderr
    assert report("inspect", out)["model"] == "[/x] :100:"
    for command in (result, invoke("inspect", out)):
        shown = command.stdout.replace("\n", "")
        assert "[/x] :100:" in shown
        assert "[dim]" in shown
    assert " float32[n, 4] " in shown  # and no more than the names


def test_names_do_not_reach_a_terminal_as_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "a\x1b[2Jb\x9b\x08\u202ec\r"
    show(tables.pairs(f"of {name}", [(name, name)]), tables.table(name, ("name",), [(name,)]), name)
    report_notice(f"NOTICE: {name}")
    report_error(name)
    with Progress() as progress:
        progress(name)
    shown = capsys.readouterr()
    assert shown.out.count(r"a\x1b[2Jb\x9b\x08\u202ec\r") == 6
    assert shown.err.count(r"a\x1b[2Jb\x9b\x08\u202ec\r") == 3
    assert all(c.isprintable() or c == "\n" for c in shown.out + shown.err)


def test_inspect_one_bucket(
    model_file: Path, tmp_path: Path, invoke: Invoke, report: Callable[..., Any]
) -> None:
    out = tmp_path / "streams.rr"
    settings = "--buckets 2 --compiler eager --strategy matching --streams 2 --rewrites none"
    result = invoke("capture", f"{model_file}:build", "--out", out, *settings.split())
    assert result.exit_code == 0, result.stderr
    assert "matching" in result.stdout
    plan = report("inspect", out, "--bucket", 2)
    assert plan["strategy"] == "matching"
    assert plan["streams"] == 2
    assert plan["waits"] == sum(len(s["waits"]) for s in plan["steps"]) > 0
    assert {s["stream"] for s in plan["steps"]} == {0, 1}
    assert sum(len(s["operators"]) for s in plan["steps"]) == plan["operators"]
    assert "waits for" in invoke("inspect", out, "--bucket", 2).stdout
    result = invoke("inspect", out, "--bucket", 3)
    assert result.exit_code == 1
    assert "has no bucket 3; its buckets are 2" in result.stderr


def test_inspect_shows_what_lowered_precision_costs(
    model_file: Path, tmp_path: Path, invoke: Invoke, report: Callable[..., Any]
) -> None:
    out = tmp_path / "small.rr"
    base = ["capture", f"{model_file}:build", "--out", out, "--buckets", "2", "--compiler", "eager"]
    result = invoke(*base, "--table-precision", "int8", "--max-error", "1e-7")
    assert result.exit_code == 1
    assert "(max_error 1e-07 of its scale" in " ".join(result.stderr.split())
    result = invoke(*base, "--table-precision", "int8", "--max-error", "0.03")
    assert result.exit_code == 0, result.stderr
    summary = report("inspect", out)
    assert (summary["precision"], summary["table_precision"]) == ("fp32", "int8")
    assert summary["max_error"] == 0.03
    assert summary["lowered"] == {"a.weight": "int8 rows", "b.weight": "int8 rows"}
    (bucket,) = summary["buckets"]
    (output,) = bucket["parity"]["outputs"]
    assert 0 < output["max_abs"] < 0.03 * output["scale"]
    text = invoke("inspect", out).stdout
    assert "fp32, tables int8, 2 weights stored in less" in text
    assert "Errors against the float32 model, at most 0.03 of the scale" in " ".join(text.split())


def test_inspect_refuses_a_damaged_artifact(artifact: Path, invoke: Invoke) -> None:
    weights = artifact / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    result = invoke("inspect", artifact)
    assert result.exit_code == 1
    assert "was edited or is torn" in result.stderr
    (artifact / "manifest.json").write_text("{}")
    assert "does not match manifest.sha256" in invoke("inspect", artifact).stderr


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("FILE:build", ["--buckets", "1,x"], "expected batch sizes separated by commas"),
        ("FILE:build", ["--buckets", "0"], "batch sizes of 1 to 2147483647"),
        ("FILE:build", ["--strategy", "best"], "unknown strategy 'best'"),
        ("FILE:build", ["--compiler", "gcc"], "unknown compiler 'gcc'"),
        ("FILE:build", ["--rewrites", "magic"], "unknown rewrite 'magic'"),
        ("FILE:build", ["--precision", "fp8"], "unknown precision 'fp8'"),
        ("FILE:build", ["--precision", "tf32"], "precision 'tf32' cannot be captured for 'cpu'"),
        ("FILE:build", ["--table-precision", "int4"], "unknown table precision 'int4'"),
        ("FILE:build", ["--arg", "rowz=3"], "has no argument 'rowz'"),
        ("FILE:build", ["--inputs", "absent.npz"], "no file at absent.npz"),
        ("FILE:training", [], "call model.eval\\(\\) first|training mode"),
        ("model.onnx", [], "no file at model.onnx"),
    ],
)
def test_capture_errors(
    target: str,
    options: list[str],
    message: str,
    model_file: Path,
    tmp_path: Path,
    invoke: Invoke,
) -> None:
    out = tmp_path / "out" / "x.rr"
    base = ["--compiler", "eager", "--out", str(out)]
    result = invoke("capture", target.replace("FILE", str(model_file)), *base, *options)
    assert result.exit_code == 1, result.stderr
    assert re.search(message, result.stderr)
    assert result.stdout == ""
    assert not out.exists()


def test_example_inputs_from_a_file(
    model_file: Path,
    tmp_path: Path,
    request_file: Callable[..., Path],
    report: Callable[..., Any],
) -> None:
    settings = ("--buckets", "2", "--compiler", "eager", "--inputs", request_file(3))
    summary = report("capture", f"{model_file}:build", "--out", tmp_path / "x.rr", *settings)
    assert [i["name"] for i in summary["inputs"]] == ["dense", "ids_0", "ids_1"]


def test_overwriting_is_asked_for(
    artifact: Path, model_file: Path, invoke: Invoke, report: Callable[..., Any]
) -> None:
    command = ("capture", f"{model_file}:build", "--out", artifact, "--buckets", "4")
    result = invoke(*command, "--compiler", "eager")
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    again = report(*command, "--compiler", "eager", "--overwrite", "--strict")
    assert [b["size"] for b in again["buckets"]] == [4]
    assert report("inspect", artifact) == again


def test_strict_refuses_unchecked_tables_and_keeps_what_was_there(
    artifact: Path, model_file: Path, invoke: Invoke, report: Callable[..., Any]
) -> None:
    before = report("inspect", artifact)
    command = ("capture", f"{model_file}:hashed", "--out", artifact, "--overwrite")
    settings = ("--buckets", "2", "--compiler", "eager")
    result = invoke(*command, *settings, "--strict")
    assert result.exit_code == 1
    assert "--strict: ids of a.weight, b.weight are computed" in result.stderr
    assert report("inspect", artifact) == before
    assert [p.name for p in artifact.parent.iterdir()] == [artifact.name]

    result = invoke(*command, *settings)
    assert result.exit_code == 0
    assert "notice: ids of a.weight, b.weight are computed" in result.stderr


def test_eager_fallback_is_visible_and_strict_refuses_it(
    model_file: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "cxx_compiler", lambda: None)
    command = ("capture", f"{model_file}:build", "--buckets", "2", "--out", tmp_path / "x.rr")
    result = invoke(*command, "--strict")
    assert result.exit_code == 1
    assert "no C++ compiler" in result.stderr
    assert not (tmp_path / "x.rr").exists()
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    assert "notice: no C++ compiler" in result.stderr
