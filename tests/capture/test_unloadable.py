"""Versions that are exchanged leave nothing of their libraries in the process."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest

from recreplay.capture import capture
from recreplay.models import ncf
from recreplay.runtime import Runtime


def mapped(folder: Path) -> set[str]:
    """Files below `folder` that this process has mapped; those that are deleted, too."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[5:]
        if path and path[0].startswith(str(folder)):
            found.add(path[0])
    return found


@pytest.mark.inductor
def test_closed_versions_are_unmapped(tmp_path: Path) -> None:
    model = ncf(rows_scale=0.001)
    capture(model, out=tmp_path / "first.rr", buckets=[1, 4], compiler="inductor")
    request = {name: value.numpy() for name, value in model.example_inputs(3).items()}
    for version in range(3):
        path = shutil.copytree(tmp_path / "first.rr", tmp_path / f"{version}.rr")
        with Runtime.load(path, lanes=2) as runtime:
            runtime.run(request)
            assert len(mapped(path)) >= 4  # two packages, launch.so and fill.so
        del runtime
        gc.collect()
        assert mapped(path) == set()
