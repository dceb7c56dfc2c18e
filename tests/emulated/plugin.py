"""`pytest -p emulated.plugin`: the emulated device in place of a GPU, for a whole session."""

from __future__ import annotations

import warnings
from contextlib import ExitStack

from emulated import bindings, kernels
from emulated.operators import registered

_STACK = ExitStack()


def pytest_configure() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its kernels are overridden
        emulator = _STACK.enter_context(registered())
    _STACK.enter_context(bindings.replaced())
    _STACK.enter_context(kernels.replaced(emulator))


def pytest_unconfigure() -> None:
    _STACK.close()
