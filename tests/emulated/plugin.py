"""`pytest -p emulated.plugin`: the emulated device in place of a GPU, for a whole session."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from unittest.mock import patch

import pytest
from emulated import bindings, kernels
from emulated.operators import registered

_STACK = ExitStack()
_COMPILED = "recreplay.capture.compilers.toolchain._cuda_problem"


def pytest_configure() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its kernels are overridden
        emulator = _STACK.enter_context(registered())
    _STACK.enter_context(bindings.replaced())
    _STACK.enter_context(kernels.replaced(emulator))
    problem = "the emulated device runs no compiled kernels"
    _STACK.enter_context(patch(_COMPILED, lambda: problem))


_LEFT_OUT = {
    "test_every_segment_has_its_kernels": "the profiler is not emulated",
    "test_a_replay_does_not_wait_for_a_thread_that_runs_python": "nodes run Python themselves",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name, reason in _LEFT_OUT.items():
            if name in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_unconfigure() -> None:
    _STACK.close()
