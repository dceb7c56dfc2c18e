"""From an artifact to lanes: weights are loaded once, everything else once a lane."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from recreplay.runtime.artifact import (
    CONSTANTS,
    FILLER,
    LAUNCHER,
    MADE,
    SELFTEST,
    WEIGHTS,
    Artifact,
    check_environment,
)
from recreplay.runtime.fill import Check
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.serving import Wait

if TYPE_CHECKING:
    import torch

    from recreplay.runtime.devices.base import Device
    from recreplay.runtime.lane import Lane


class LaneLoader:
    """Holds the weights of an artifact on a device, and makes lanes that share them."""

    def __init__(self, artifact: Artifact, wanted: str, check: Check, wait: Wait = "spin") -> None:
        from recreplay.runtime.devices import open_device
        from recreplay.runtime.made_weights import read_made
        from recreplay.runtime.modes import no_modes
        from recreplay.runtime.weight_copies import copy_names, make_copies
        from recreplay.runtime.weights import load_tensors, with_views

        self._artifact, self._wanted = artifact, wanted
        self._check, self._wait = check, wait
        root, manifest = artifact.path, artifact.manifest
        with no_modes():
            device = open_device(wanted)
            try:
                check_environment(artifact, device.fingerprint())
                target = device.torch_device
                self.made = read_made(root / MADE)
                self.weights = with_views(load_tensors(root / WEIGHTS, target), manifest.tables)
                self.constants = load_tensors(root / CONSTANTS, target)
                self.copies = make_copies(
                    copy_names(manifest), self.weights, manifest.block_columns
                )
            finally:
                device.close()

    def close(self) -> None:
        """Let go of the weights; lanes that are left keep what they read."""
        for held in (self.weights, self.constants, self.copies):
            held.clear()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What segments read besides requests, under the names that they use."""
        return as_segments_name(self.weights, self.constants, self.copies)

    def lane(self) -> Lane:
        """One more lane: graphs, buffers, streams and packages of its own.

        Packages are not shared, because their runner, the one that a stream capture allows, serves
        one caller at a time.
        """
        from recreplay.runtime.devices import open_device
        from recreplay.runtime.modes import no_modes

        artifact = self._artifact
        with no_modes():
            device = open_device(self._wanted, self._wait, artifact.path / LAUNCHER)
            return open_lane(artifact.manifest, artifact.path, device, self.tensors(), self._check)


def as_segments_name(
    weights: Mapping[str, torch.Tensor],
    constants: Mapping[str, torch.Tensor],
    copies: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """All tensors that segments read besides requests, under the names that they use."""
    return {
        **{f"weight:{k}": v for k, v in weights.items()},
        **{f"const:{k}": v for k, v in constants.items()},
        **copies,
    }


def open_lane(
    manifest: Manifest,
    root: Path,
    device: Device,
    tensors: Mapping[str, torch.Tensor],
    check: Check = "error",
) -> Lane:
    """A lane over tensors that are on its device already; the device is the lane's from now on.

    `root` is the folder of the packages and of the stored requests, which graphs are recorded on.
    `tensors` are named as segments name them. Closing the lane, and failing to open it, closes the
    device and the packages.
    """
    from safetensors.numpy import load_file

    from recreplay.runtime.lane import Closeable, Lane
    from recreplay.runtime.native_fill import load_fill_library
    from recreplay.runtime.segments import load_package
    from recreplay.runtime.workspace import Workspace

    packages = {}
    library = workspace = None
    try:
        compiled = any(package.compiler == "inductor" for package in manifest.packages.values())
        if compiled and device.torch_device.type == "cpu":
            workspace = Workspace(root / LAUNCHER)
        for key, package in manifest.packages.items():
            path = root / package.path
            packages[key] = load_package(package.compiler, path, device.torch_device, workspace)
        library = load_fill_library(root / FILLER, device.helpers)
        stored = load_file(root / SELFTEST)
        lane = Lane(manifest, device, packages, tensors, check, stored, library)
    except BaseException:
        for loaded in packages.values():
            loaded.close()
        for memory in (workspace, library):
            if memory is not None:
                memory.close()
        device.close()
        raise
    memories: list[Closeable] = [m for m in (workspace, library) if m is not None]
    lane.resources += [*packages.values(), *memories, device]
    return lane
