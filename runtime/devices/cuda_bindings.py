"""The CUDA runtime API, and what its calls give."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from recreplay.runtime.errors import EnvironmentMismatchError, RecReplayError


def bindings() -> Any:
    """The CUDA runtime API of cuda-bindings, which torch's CUDA wheels depend on."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise EnvironmentMismatchError(
            f"cuda-bindings cannot be imported ({error}); pip install cuda-bindings"
        ) from error


def checked(result: Any) -> tuple[Any, ...]:
    """The values of a cuda-bindings call `(error, *values)`."""
    error, *values = result
    if int(error) != 0:
        raise RecReplayError(f"CUDA call failed: {error!r}")
    return tuple(values)
