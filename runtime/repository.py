"""Models by name and version in a directory, one live version each, exchanged while they serve.

ROOT/NAME/VERSION/      an artifact, or a funnel.json; VERSION is a whole number, the largest is the
                        newest
ROOT/NAME/serving.json  how to serve it (optional)
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from recreplay.runtime.artifact import MANIFEST, device_kind
from recreplay.runtime.engine import Runtime
from recreplay.runtime.errors import (
    ModelNotFoundError,
    RepositoryError,
    RuntimeClosedError,
)
from recreplay.runtime.fill import Check
from recreplay.runtime.served_funnel import FUNNEL, ServedFunnel
from recreplay.runtime.serving import SERVING, Serving
from recreplay.runtime.spec import InputSpec, OutputSpec

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_VERSION = re.compile(r"[0-9]{1,18}")
_CLOSED = "this ModelRepository was closed"
T = TypeVar("T")
State = Literal["READY", "UNAVAILABLE", "LOADING"]


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version of a model; `version` is empty where the model has none on disk."""

    name: str
    version: str
    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class Served:
    """The live version of a model."""

    version: str
    runtime: Runtime | ServedFunnel

    def stages(self, name: str) -> dict[str, Runtime]:
        """What replays, by the name that it is counted under: of model `name`, or a stage of it."""
        if isinstance(self.runtime, ServedFunnel):
            return {f"{name}/{stage}": one for stage, one in self.runtime.stages.items()}
        return {name: self.runtime}

    def tensors(self) -> tuple[Sequence[InputSpec], Sequence[OutputSpec]]:
        """What it takes and gives."""
        said = self.runtime if isinstance(self.runtime, ServedFunnel) else self.runtime.manifest
        return said.inputs, said.outputs

    def output_names(self) -> list[str]:
        return [output.name for output in self.tensors()[1]]


class ModelRepository:
    """Loads, exchanges and unloads models and funnels; thread-safe.

    A new version is loaded and self-tested beside the old one, then takes its place at once; what
    the old one has accepted, it answers, and then it is freed. One that fails changes nothing.
    `NAME/serving.json`, as `recreplay schedule` writes it, says how all versions of a model are
    served.
    """

    def __init__(
        self, root: str | Path, *, device: str | None = None, check: Check = "error"
    ) -> None:
        if device is not None:
            device_kind(device)
        self.root = Path(root)
        if not self.root.is_dir():
            raise RepositoryError(f"no model repository at {self.root}: it is not a directory")
        if (self.root / MANIFEST).is_file():
            raise RepositoryError(
                f"{self.root} is an artifact; a repository is a directory that has it as NAME/1"
            )
        self._device, self._check = device, check
        self._live: dict[str, Served] = {}
        self._failed: dict[tuple[str, str], str] = {}
        self._loading: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}  # one load or unload of a model at a time
        self._closed = False

    def names(self) -> list[str]:
        """Models on disk."""
        return [name for name in self._folders() if _NAME.fullmatch(name)]

    def misnamed(self) -> list[str]:
        """Folders on disk with versions in them that are not served: no model has such a name."""
        return [n for n in self._folders() if not _NAME.fullmatch(n) and self._versions(n)]

    def versions(self, name: str) -> list[str]:
        """Versions of a model on disk, oldest first."""
        return self._versions(name) if _NAME.fullmatch(name) else []

    def _folders(self) -> list[str]:
        try:
            return sorted(p.name for p in self.root.iterdir() if p.is_dir())
        except OSError:  # a storage that is away takes nothing from what serves
            return []

    def _versions(self, name: str) -> list[str]:
        try:
            found = [
                p.name
                for p in (self.root / name).iterdir()
                if _VERSION.fullmatch(p.name) and any((p / f).is_file() for f in (MANIFEST, FUNNEL))
            ]
        except OSError:  # it is not there (any more), or not for us to read
            return []
        return sorted(found, key=int)

    def index(self) -> list[ModelState]:
        """Every version on disk or live, and why those that are not live are not."""
        found = []
        on_disk = {name: self.versions(name) for name in self.names()}  # which may take its time
        with self._lock:
            for name in sorted({*on_disk, *self._live}):
                live = self._live.get(name)
                known = {*on_disk.get(name, ())}
                if live is not None:
                    known.add(live.version)
                for version in sorted(known, key=int) or [""]:
                    found.append(self._state(name, version, live))
        return found

    def load(self, name: str, version: str | None = None) -> Served:
        """Load a version, the newest if none is named, and let it take the live one's place.

        Raises ModelNotFoundError, or RepositoryError where the version cannot be loaded; the live
        one then goes on.
        """
        known = self.versions(name)
        if not known or (version is not None and version not in known):
            raise ModelNotFoundError(self._missing(name, version))
        chosen = version or known[-1]
        with self._turn(name):
            with self._lock:
                if self._closed:
                    raise RuntimeClosedError(_CLOSED)
                for key in [k for k in self._failed if k[0] == name and k[1] not in known]:
                    del self._failed[key]  # it is not on disk any more
                self._loading.add((name, chosen))
            try:
                served = Served(chosen, self._open(name, chosen))
            except Exception as error:  # whatever an artifact can do to its loader
                with self._lock:
                    self._loading.discard((name, chosen))
                    self._failed[name, chosen] = str(error)
                raise RepositoryError(
                    f"version {chosen} of model {name!r} was not loaded: {error}"
                ) from error
            with self._lock:
                self._loading.discard((name, chosen))
                self._failed.pop((name, chosen), None)
                closed = self._closed
                old = served if closed else self._live.get(name)
                if not closed:
                    self._live[name] = served
            if old is not None:
                old.runtime.close()
            if closed:
                raise RuntimeClosedError(_CLOSED)
            return served

    def _missing(self, name: str, version: str | None) -> str:
        if version:
            return f"the repository has no version {version} of model {name!r}"
        text = f"the repository has no model {name!r}"
        if name not in self.names():
            return text
        return (
            f"{text}: no artifact and no funnel.json was found in "
            f"{self.root / name}/VERSION, where VERSION is a whole number"
        )

    def load_all(self) -> list[RepositoryError]:
        """Load the newest version of every model; what failed, the others being loaded."""
        failed = []
        for name in self.names():
            try:
                self.load(name)
            except RepositoryError as error:
                failed.append(error)
        return failed

    def unload(self, name: str) -> None:
        """Take a model out of service; what it has accepted, it answers."""
        with self._turn(name):
            with self._lock:
                served = self._live.pop(name, None)
                for key in [key for key in self._failed if key[0] == name]:
                    del self._failed[key]  # why another version is not loaded is not why none is
            if served is None:
                raise ModelNotFoundError(f"model {name!r} is not loaded")
            served.runtime.close()

    def get(self, name: str, version: str | None = None) -> Served:
        """The live version. Raises ModelNotFoundError where there is none, or another one."""
        served = self._live.get(name)
        if served is None:
            with self._lock:
                reasons = [why for (n, _), why in self._failed.items() if n == name]
            why = f": {reasons[-1]}" if reasons else ""
            raise ModelNotFoundError(f"model {name!r} is not loaded{why}")
        if version is not None and served.version != version:
            raise ModelNotFoundError(
                f"version {version} of model {name!r} is not loaded; version {served.version} is"
            )
        return served

    def run(
        self, name: str, inputs: Mapping[str, Any], version: str | None = None
    ) -> tuple[str, dict[str, np.ndarray[Any, Any]]]:
        """`Runtime.run` on the live version; which one that was, and its outputs."""
        return self._on_live(name, version, lambda runtime: runtime.run(inputs))

    def submit(
        self,
        name: str,
        inputs: Mapping[str, Any],
        version: str | None = None,
        *,
        deadline_us: int | None = None,
    ) -> tuple[str, Future[dict[str, np.ndarray[Any, Any]]]]:
        """`Runtime.submit` on the live version; which one that was, and the future."""
        return self._on_live(
            name, version, lambda runtime: runtime.submit(inputs, deadline_us=deadline_us)
        )

    async def arun(
        self,
        name: str,
        inputs: Mapping[str, Any],
        version: str | None = None,
        *,
        deadline_us: int | None = None,
    ) -> tuple[str, dict[str, np.ndarray[Any, Any]]]:
        """`Runtime.arun` on the live version; which one that was, and its outputs."""
        while True:
            served = self.get(name, version)
            try:
                return served.version, await served.runtime.arun(inputs, deadline_us=deadline_us)
            except RuntimeClosedError:
                if self._live.get(name) is served:
                    raise

    def close(self) -> None:
        """Answer what was accepted, then free all models. Closing twice is fine."""
        with self._lock:
            self._closed = True
            served = list(self._live.values())
        for one in served:
            one.runtime.close()

    def _on_live(
        self, name: str, version: str | None, call: Callable[[Runtime | ServedFunnel], T]
    ) -> tuple[str, T]:
        while True:
            served = self.get(name, version)
            try:
                return served.version, call(served.runtime)
            except RuntimeClosedError:
                if self._live.get(name) is served:
                    raise
                # A newer version took its place between the two lines; that one answers.

    def _open(self, name: str, version: str) -> Runtime | ServedFunnel:
        path, folder = self.root / name / SERVING, self.root / name / version
        if (folder / SERVING).is_file():  # which else would be as if it were not there
            raise RepositoryError(
                f"{folder / SERVING} is read by nobody; what it says is of all versions of a "
                f"model: move it to {path}"
            )
        serving = Serving.read(path) if path.is_file() else Serving()
        if (folder / FUNNEL).is_file():
            return ServedFunnel.load(folder, self._device, self._check, serving)
        return Runtime.load(folder, device=self._device, check=self._check, serving=serving)

    def _state(self, name: str, version: str, live: Served | None) -> ModelState:
        if live is not None and live.version == version:
            if self._closed:
                return ModelState(name, version, "UNAVAILABLE", _CLOSED)
            return ModelState(name, version, "READY", "")
        if (name, version) in self._loading:
            return ModelState(name, version, "LOADING", "")
        reason = self._failed.get((name, version), "" if version else "no version on disk")
        return ModelState(name, version, "UNAVAILABLE", reason)

    def _turn(self, name: str) -> threading.Lock:
        with self._lock:
            return self._turns.setdefault(name, threading.Lock())
