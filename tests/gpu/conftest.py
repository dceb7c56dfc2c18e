"""Tests that need a CUDA device; where there is none they are skipped, and say so."""

from __future__ import annotations

import os

import pytest
import torch

from recreplay.tools.gpu_tests import BROKEN, SHARE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, and skip it without a device; keep a share, if asked to."""
    at, count = map(int, os.environ.get(SHARE, "0/1").split("/"))
    items[:] = items[at::count]
    missing = pytest.mark.skip(reason="no CUDA device: torch.cuda.is_available() is false")
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(missing)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str) -> None:
    """End the process with a broken context: nothing after it could pass."""
    if "tests/gpu/" not in nodeid or not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        pytest.exit(f"the CUDA context is broken after {nodeid}: {error}", returncode=BROKEN)
