"""Device back-ends: `cpu` and `cuda` behind one protocol."""

from __future__ import annotations

from pathlib import Path

from recreplay.runtime.artifact import device_kind
from recreplay.runtime.devices.base import Device, Graph, Recording, Staging
from recreplay.runtime.errors import EnvironmentMismatchError
from recreplay.runtime.serving import Wait

__all__ = ["Device", "Graph", "Recording", "Staging", "open_device"]


def open_device(name: str, wait: Wait = "spin", launcher: Path | None = None) -> Device:
    """The back-end for `cpu`, `cuda` or `cuda:N`; `wait` as in `Serving`; `launcher`: where an
    artifact has its library of launch.c, if it has one, for CUDA."""
    if device_kind(name) == "cpu":
        from recreplay.runtime.devices.cpu import CpuDevice

        return CpuDevice()
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentMismatchError(
            "no CUDA device is usable here (torch.cuda.is_available() is false); capture for "
            "device 'cpu', or run where there is one"
        )
    from recreplay.runtime.devices.cuda import CudaDevice

    return CudaDevice(int(name.partition(":")[2] or 0), wait, launcher)
