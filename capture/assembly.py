"""An artifact under construction: the packages compiled so far, and the manifest of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from recreplay.capture.choices import Choice
from recreplay.capture.compilers import SegmentCompiler, get_compiler
from recreplay.capture.ingest import Ingested
from recreplay.capture.layout import lay_out
from recreplay.capture.planning import Planned
from recreplay.capture.sharing import Code, share
from recreplay.runtime.manifest import Manifest, Package

Keys = Mapping[int, Sequence[str]]  # packages of a bucket's segments, by bucket


class Assembly:
    """Compiles plans into `folder`, each distinct segment once.

    `blank` is the manifest without tables, packages and buckets.
    """

    def __init__(
        self,
        folder: Path,
        model: Ingested,
        blank: Manifest,
        device: str,
        threads: int,
        processor: str,
        progress: Callable[[str], None],
    ) -> None:
        self.folder, self.model, self.device = folder, model, device
        self._blank, self._threads, self._progress = blank, threads, progress
        self._processor = processor
        self._packages: dict[str, Package] = {}
        self._apart: set[str] = set()  # code that does not compile for several buckets at once
        self.block_columns = blank.block_columns

    def keys(self, choice: Choice, planned: Sequence[Planned]) -> Keys:
        """The packages that a plan needs, compiled or not."""
        return self._share(choice, planned)[1]

    def compile(self, choice: Choice, planned: Sequence[Planned]) -> Keys:
        """Compile what no plan before has; returns the packages of each bucket's segments."""
        codes, keys = self._share(choice, planned)
        missing = {name: code for name, code in codes.items() if name not in self._packages}
        if not missing:
            return keys
        backend = self._compiler(choice)
        compiled = backend.compile(missing, self.folder, self.device, self._progress)
        self._packages |= compiled
        apart = {code.key() for name, code in missing.items() if name not in compiled}
        if not apart:
            return keys
        self._progress(f"{len(apart)} of {len(missing)} segments: for each bucket by itself")
        self._apart |= apart
        return self.compile(choice, planned)

    def manifest(self, planned: Sequence[Planned], keys: Keys) -> Manifest:
        """The manifest of these buckets, with the packages that they need."""
        model = self.model
        used = {key for p in planned for key in keys[p.program.bucket]}
        return replace(
            self._blank,
            packages={k: v for k, v in self._packages.items() if k in used},
            buckets=tuple(
                lay_out(
                    p.program,
                    p.plan,
                    p.segments,
                    keys[p.program.bucket],
                    model.inputs,
                    model.outputs,
                    model.users,
                )
                for p in planned
            ),
        )

    def drop_all_but(self, manifest: Manifest) -> None:
        """Delete the packages that the manifest does not speak of."""
        for key in self._packages.keys() - manifest.packages.keys():
            path = self.folder / self._packages.pop(key).path
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _compiler(self, choice: Choice) -> SegmentCompiler:
        tf32 = self._blank.precision == "tf32"
        return get_compiler(choice.compiler, self._threads, tf32, self._processor)

    def _share(self, choice: Choice, planned: Sequence[Planned]) -> tuple[dict[str, Code], Keys]:
        backend = self._compiler(choice)
        segments = {p.program.bucket: p.segments for p in planned}
        codes, keys = share(segments, backend.dynamic_batch, self._apart)
        if choice.compiler == self._blank.compiler:
            return codes, keys
        # The same code by another compiler is another package.
        named = {key: f"{key}-{choice.compiler}" for key in codes}
        return (
            {named[key]: code for key, code in codes.items()},
            {size: [named[k] for k in members] for size, members in keys.items()},
        )
