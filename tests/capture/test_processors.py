"""Packages that are compiled for a level of x86-64 use no more than it has, and say the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import capture, processors
from recreplay.runtime import Runtime
from recreplay.runtime.errors import CaptureError
from recreplay.runtime.processor import instruction_sets

Capture = Callable[..., Path]
HERE = set(instruction_sets())
LEVELS = [
    pytest.param(
        level,
        marks=pytest.mark.skipif(
            not set(instruction_sets(level)) <= HERE or shutil.which("objdump") is None,
            reason="needs objdump, and a processor of the level",
        ),
    )
    for level in ("x86-64-v3", "x86-64-v4")
]
# Registers and instructions that come with what a level lacks.
BEYOND = {
    "x86-64-v3": r"%zmm|%ymm(1[6-9]|2\d|3[01])|%k[1-7]",
    "x86-64-v4": r"%tmm|vdpbf16ps|vcvtne2?ps2?bf16|vpdpbusd|v\w+ph\s|vpermb",
}


class Ranker(nn.Module):
    """Bags of several lengths, towers that are stacked, and layers of many widths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tables = nn.ModuleList(nn.EmbeddingBag(200, 16, mode="sum") for _ in range(5))
        self.towers = nn.ModuleList(nn.Linear(80, 70) for _ in range(3))
        self.last = nn.Linear(3 * 70, 1)

    def forward(self, ids: list[Tensor]) -> dict[str, Tensor]:
        features = torch.cat([t(i) for t, i in zip(self.tables, ids, strict=True)], dim=1)
        hidden = torch.cat([torch.relu(tower(features)) for tower in self.towers], dim=1)
        return {"score": torch.sigmoid(self.last(hidden)).squeeze(1), "hidden": hidden}


def request(rows: int, seed: int = 0) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {f"ids_{i}": torch.randint(0, 200, (rows, 6), generator=made) for i in range(5)}


def disassembled(artifact: Path) -> str:
    libraries = sorted((artifact / "segments").rglob("*.so"))
    assert libraries
    command = ["objdump", "-d", "--no-show-raw-insn", *map(str, libraries)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.inductor
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_kept_to(level: str, captured: Capture) -> None:
    tables = "int8" if level == "x86-64-v3" else "fp32"
    model = Ranker().eval()
    path = captured(
        model,
        ([request(4)[f"ids_{i}"] for i in range(5)],),
        buckets=[1, 4, 40],
        compiler="inductor",
        processor=level,
        table_precision=tables,
    )
    environment = json.loads((path / "manifest.json").read_text())["environment"]
    assert environment["instructions"].split() == instruction_sets(level)
    code = disassembled(path)
    assert re.search(r"%ymm" if level == "x86-64-v3" else r"%zmm", code)
    assert (beyond := re.search(BEYOND[level], code)) is None, beyond
    tolerance = 1e-5 if tables == "fp32" else 0.05
    with Runtime.load(path) as runtime, torch.no_grad():
        for scale in (1.0, -0.5):  # packed copies are made again in the same blocks
            model.towers[1].weight.mul_(scale)
            runtime.update_weights({"towers.1.weight": model.towers[1].weight})
            for rows in (1, 3, 40, 50):
                given = request(rows, rows)
                wanted = model([given[f"ids_{i}"] for i in range(5)])
                found = runtime.run({k: v.numpy() for k, v in given.items()})
                for name, value in wanted.items():
                    np.testing.assert_allclose(
                        found[name], value, rtol=1e-4, atol=tolerance * value.abs().max().item()
                    )


def test_an_unknown_processor_is_refused(tmp_path: Path) -> None:
    message = "^unknown processor 'pentium'; expected one of native, x86-64-v3, x86-64-v4$"
    with pytest.raises(CaptureError, match=message):
        capture(Ranker().eval(), out=tmp_path / "a.rr", processor="pentium")
    assert not (tmp_path / "a.rr").exists()


def test_what_cannot_be_proved_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = processors.instruction_sets
    without = [s for s in real("x86-64-v4") if s not in ("avx512f", "avx512vl")]
    monkeypatch.setattr(
        processors, "instruction_sets", lambda *target: real(*target) if target else without
    )
    message = (
        "^processor 'x86-64-v4' cannot be captured for here: this one lacks avx512f, avx512vl, and "
        "capture proves what it compiles by running it$"
    )
    with pytest.raises(CaptureError, match=message):
        capture(Ranker().eval(), out=tmp_path / "a.rr", processor="x86-64-v4")


@pytest.mark.skipif(not set(instruction_sets("x86-64-v3")) <= HERE, reason="needs the level")
def test_bfloat16_is_refused_for_processors_that_do_not_multiply_it(tmp_path: Path) -> None:
    message = (
        "^precision 'bf16' cannot be captured for 'cpu': oneDNN has bfloat16 products for AVX-512, "
        "which x86-64-v3 lacks; use fp32$"
    )
    with pytest.raises(CaptureError, match=message):
        capture(Ranker().eval(), out=tmp_path / "a.rr", processor="x86-64-v3", precision="bf16")
