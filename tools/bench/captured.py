"""A model captured for a benchmark, and what every report says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recreplay.tools import strict
from recreplay.tools.bench.empty_cache import empty_cache
from recreplay.tools.bench.suites import Benchmark
from recreplay.tools.console import Progress
from recreplay.tools.files import folder_size, temporary_folder

if TYPE_CHECKING:
    from torch import Tensor

    from recreplay.runtime.manifest import Manifest
    from recreplay.tools.target import Target


@dataclass(frozen=True)
class Captured:
    """`folder` holds the artifact at `path`, and goes when the benchmark ends."""

    target: Target
    benchmark: Benchmark
    folder: Path
    path: Path
    manifest: Manifest
    nbytes: int

    def notices(self) -> list[str]:
        """What is measured otherwise than one might expect."""
        sizes = [bucket.size for bucket in self.manifest.buckets]
        batches = strict.batch_remarks(self.benchmark.batches, sizes)
        return strict.remarks(self.manifest) + batches

    def to_json(self) -> dict[str, Any]:
        manifest = self.manifest
        return {
            "name": self.target.name + self.benchmark.suffix,
            "target": self.target.text,
            "arguments": self.target.arguments,
            "buckets": list(self.benchmark.buckets),
            "device": manifest.device,
            "strategy": manifest.strategy,
            "streams": manifest.streams,
            "compiler": manifest.compiler,
            "rewrites": list(manifest.rewrites),
            "packages": len(manifest.packages),
            "capture_seconds": manifest.capture_seconds,
            "artifact_bytes": self.nbytes,
        }


@contextmanager
def captured(
    benchmark: Benchmark,
    progress: Progress,
    settings: dict[str, Any],
    example: dict[str, Tensor] | None = None,
    strict_mode: bool = False,
) -> Iterator[Captured]:
    """Capture the benchmark's model by `settings`, in a folder of its own."""
    from recreplay.tools.capture_model import capture_target
    from recreplay.tools.target import load_target

    progress(f"loading {benchmark.target}")
    target = load_target(benchmark.target, benchmark.arguments)
    with temporary_folder() as folder:
        path = folder / f"{target.name}.rr"
        model: Any = target.model
        shared = {"user_inputs": model.user_inputs} if benchmark.user_side else {}
        with empty_cache():
            manifest = capture_target(
                target,
                path,
                benchmark.buckets,
                lambda message: progress(f"{target.name}: {message}"),
                example=example,
                strict_mode=strict_mode,
                **settings | shared,
            )
        yield Captured(target, benchmark, folder, path, manifest, folder_size(path))
