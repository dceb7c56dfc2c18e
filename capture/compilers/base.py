"""The protocol of a segment compiler, and the ones there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from recreplay.capture.compilers.eager import EagerCompiler
from recreplay.capture.compilers.inductor import AUTOTUNED, InductorCompiler
from recreplay.capture.compilers.tensorrt import PRECISIONS, TensorRTCompiler
from recreplay.capture.sharing import Code
from recreplay.runtime.manifest import Package
from recreplay.runtime.processor import NATIVE


class SegmentCompiler(Protocol):
    name: str
    dynamic_batch: bool  # whether one package may serve several buckets

    def compile(
        self,
        codes: Mapping[str, Code],
        folder: Path,
        device: str,
        progress: Callable[[str], None],
    ) -> dict[str, Package]:
        """Write a package for each named code below `folder`; paths in the result are relative to
        it. Code for several buckets that can be compiled for each of them only has none."""


COMPILERS = ("eager", "inductor", AUTOTUNED, *PRECISIONS)


def get_compiler(
    name: str, threads: int, tf32: bool = False, processor: str = NATIVE
) -> SegmentCompiler:
    """The compiler of that name, one of `COMPILERS`; `tf32` as in `recreplay.capture.precision`,
    `processor` of `PROCESSORS`."""
    if name == "eager":
        return EagerCompiler()
    if name in PRECISIONS:
        return TensorRTCompiler(name, threads, processor)
    return InductorCompiler(threads, tf32, name == AUTOTUNED, processor)
