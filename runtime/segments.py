"""Compiled segments as the runtime calls them: bound once to tensors, then called with nothing.

Three kinds of package, one small protocol: `load(path)` gives a factory, `factory.bind(inputs,
outputs)` gives a function that reads the one and writes the other.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from recreplay.runtime.aten import Operator, bind
from recreplay.runtime.errors import ArtifactCorruptError
from recreplay.runtime.native import NativePackage, native_library
from recreplay.runtime.scratch import adopt, drop_scratch, make_scratch
from recreplay.runtime.workspace import Workspace

Launch = Callable[[], object]


class LoadedPackage(Protocol):
    def bind(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> Launch:
        """A call that computes `outputs` from `inputs`, in place, on the current stream."""

    def close(self) -> None:
        """Release what loading took. Bound calls must not be used any more."""


class EagerPackage:
    """A list of ATen operators, called one by one."""

    def __init__(self, path: Path, device: torch.device) -> None:
        data = json.loads(path.read_text())
        try:
            self._operators = [Operator.from_json(op) for op in data["operators"]]
            self._results = [str(r) for r in data["results"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactCorruptError(f"{path} is not a stored segment: {error!r}") from error
        self._device = device

    def bind(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> Launch:
        values = {f"i{i}": t for i, t in enumerate(inputs)}
        into = dict(zip(self._results, outputs, strict=True))
        run = bind(self._operators, values, self._results, self._device, into)
        pairs = list(outputs)
        kind = self._device.type

        def compute() -> None:
            with torch.inference_mode():
                for out, result in zip(pairs, run(), strict=True):
                    if result is not out:
                        out.copy_(result)

        # Not a function that calls itself: it would keep the tensors until garbage is collected.
        def launch() -> None:
            if torch.is_autocast_enabled(kind):  # the caller's; it is no part of the model
                with torch.autocast(kind, enabled=False):
                    compute()
            else:
                compute()

        return launch

    def close(self) -> None:
        pass


class InductorPackage:
    """An AOTInductor package behind torch's loader, which holds the interpreter lock meanwhile.

    It checks neither shapes nor dtypes: the runtime did.

    The package's own runner is single-threaded: the other one takes locks and records events,
    which a stream capture forbids. One package is bound by one lane at a time.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        index = (device.index or 0) if device.type == "cuda" else -1
        self._scratch: Path | None = None
        source = folder
        if _loads_folders():
            path = str(source)
        else:
            self._scratch = make_scratch()
            path = str(_zip(source, self._scratch / "model.pt2"))
        # The loader makes its device the thread's current one, and leaves it so.
        on_gpu = device.type == "cuda"
        with torch.cuda.device(device) if on_gpu else nullcontext():
            # Positional arguments: package, model, single-threaded runner, runners, device index.
            self._loader = torch._C._aoti.AOTIModelPackageLoader(path, "model", True, 1, index)
        if self._scratch is not None:
            _adopt_unpacked(self._scratch, next(folder.rglob("*.so")).name)

    def bind(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> Launch:
        run: Callable[[list[torch.Tensor]], Any] = self._loader.run
        tensors = [*inputs, *outputs]

        def launch() -> None:
            run(tensors)

        return launch

    def close(self) -> None:
        del self._loader  # unloads the library, and removes the folder that it was unpacked into
        if self._scratch is not None:
            drop_scratch(self._scratch)


def _loads_folders() -> bool:
    """torch 2.13 loads a package in place; before, a zip is unpacked to a temporary folder."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return (major, minor) >= (2, 13)


def _adopt_unpacked(scratch: Path, library: str) -> None:
    """The loader unpacks to a folder that it names itself; find it by the library mapped there."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(f"/{library}"):
            inside = Path(line.split(maxsplit=5)[5])
            temporary = Path(tempfile.gettempdir())
            if inside.is_relative_to(temporary):
                adopt(scratch, temporary / inside.relative_to(temporary).parts[0])
                return


def _zip(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, Path("model") / file.relative_to(folder))
    return target


def load_package(
    compiler: str, path: Path, device: torch.device, workspace: Workspace | None
) -> LoadedPackage:
    """`workspace`: the lane's, which packages for the CPU have to have."""
    if compiler == "eager":
        return EagerPackage(path, device)
    if compiler == "inductor":
        library = None if workspace is None else native_library(path)
        if workspace is None or library is None:
            return InductorPackage(path, device)
        return NativePackage(path, library, workspace)
    if compiler == "tensorrt":
        from recreplay.runtime.tensorrt_engine import TensorRTPackage

        return TensorRTPackage(path, device)
    raise ArtifactCorruptError(f"{path} was made by the unknown segment compiler {compiler!r}")
