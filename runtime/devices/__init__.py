"""Device back-ends: `cpu` and `cuda` behind one protocol."""

from __future__ import annotations

from pathlib import Path

from recreplay.runtime.devices.base import Device, Graph, Recording, Staging
from recreplay.runtime.errors import EnvironmentMismatchError, RecReplayError
from recreplay.runtime.serving import Wait

__all__ = ["Device", "Graph", "Recording", "Staging", "open_device"]


def open_device(name: str, wait: Wait = "spin", launcher: Path | None = None) -> Device:
    """The back-end for `cpu`, `cuda` or `cuda:N`; `wait` as in `Serving`; `launcher`: where an
    artifact has its library of launch.c, if it has one, for CUDA."""
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        from recreplay.runtime.devices.cpu import CpuDevice

        return CpuDevice()
    if kind == "cuda" and (not index or index.isdecimal()):
        import torch

        if not torch.cuda.is_available():
            raise EnvironmentMismatchError(
                "no CUDA device is usable here (torch.cuda.is_available() is false); capture for "
                "device 'cpu', or run where there is one"
            )
        from recreplay.runtime.devices.cuda import CudaDevice

        return CudaDevice(int(index or 0), wait, launcher)
    raise RecReplayError(f"unknown device {name!r}; expected 'cpu', 'cuda' or 'cuda:N'")
