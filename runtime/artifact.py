"""An artifact on disk: a directory that is read only after every byte of it has been checked.

`manifest.json` lists the sha256 of every other file, and `manifest.sha256` holds its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from recreplay.runtime.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    ArtifactVersionError,
    EnvironmentMismatchError,
    RecReplayError,
)
from recreplay.runtime.manifest import FORMAT, VERSION, Manifest

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
WEIGHTS = "weights.safetensors"
CONSTANTS = "constants.safetensors"
SELFTEST = "selftest.safetensors"
MADE = "made.json"  # how weights are made of others, where any are
# Only where capture had a C compiler:
LAUNCHER = "launch.so"  # calls AOTInductor packages on the CPU, which need it, and CUDA's graphs
FILLER = "fill.so"  # fills staging memory
T = TypeVar("T")
_AGAIN = "capture the model again"


@dataclass(frozen=True)
class Artifact:
    path: Path
    manifest: Manifest


def stored_request(stored: Mapping[str, T], bucket: int) -> dict[str, T]:
    """The request of a bucket, by input name, of what `SELFTEST` holds."""
    prefix = f"{bucket}/in/"
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


def stored_lengths(stored: Mapping[str, T]) -> dict[str, T]:
    """How many values the rows of the captured example have, by the input that divides them."""
    prefix = "lengths/"
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_seal(path: str | Path) -> bytes | None:
    """What tells the artifact that is at a path from any other; None where there is none."""
    try:
        return (Path(path) / SEAL).read_bytes()
    except OSError:
        return None


def open_artifact(path: str | Path) -> Artifact:
    """Read and check an artifact; nothing of it is executed."""
    root = Path(path)
    manifest = root / MANIFEST
    if not manifest.is_file():
        what = "is not a directory" if not root.is_dir() else f"has no {MANIFEST}"
        raise ArtifactNotFoundError(
            f"no artifact at {root}: it {what}; `recreplay capture ... --out {root}` makes one"
        )
    seal = root / SEAL
    if not seal.is_file():
        raise ArtifactCorruptError(f"{root} has no {SEAL}: the artifact is torn; {_AGAIN}")
    # A lane that fails later is made anew from here, wherever the process has gone and whatever a
    # link has come to mean.
    root = root.resolve()
    raw = manifest.read_bytes()
    if hashlib.sha256(raw).hexdigest() != seal.read_bytes().decode("ascii", "replace"):
        raise ArtifactCorruptError(
            f"{manifest} does not match {SEAL}: one of them was edited or is torn; {_AGAIN}"
        )
    parsed = _parse(root, raw)
    for name, expected in parsed.files.items():
        file = root / name
        if not file.resolve().is_relative_to(root):
            raise ArtifactCorruptError(f"{root} lists a file outside itself: {name!r}")
        if not file.is_file():
            raise ArtifactCorruptError(f"{file} is missing; {_AGAIN}")
        found = file_digest(file)
        if found != expected:
            raise ArtifactCorruptError(
                f"{file} has sha256 {found[:16]}…, the manifest says {expected[:16]}…: it was "
                f"edited or is torn; {_AGAIN}"
            )
    _check_sealed(root, parsed)
    return Artifact(root, parsed)


def _check_sealed(root: Path, manifest: Manifest) -> None:
    """Refuse an artifact that would load something whose digest the manifest does not list."""
    packages = manifest.packages.values()
    native = manifest.device == "cpu" and any(p.compiler == "inductor" for p in packages)
    libraries = [p for p in (LAUNCHER, FILLER) if (root / p).exists() or (native and p == LAUNCHER)]
    for needed in (WEIGHTS, CONSTANTS, SELFTEST, *libraries, *(p.path for p in packages)):
        if not any(f == needed or f.startswith(f"{needed}/") for f in manifest.files):
            raise ArtifactCorruptError(f"{root}: the manifest has no digest of {needed}; {_AGAIN}")
    for package in packages:  # a loader takes what it finds in the folder
        for file in (root / package.path).rglob("*"):
            name = file.relative_to(root).as_posix()
            if name not in manifest.files and not file.is_dir():
                raise ArtifactCorruptError(
                    f"{root}: the manifest has no digest of {name}; {_AGAIN}"
                )


def _parse(root: Path, raw: bytes) -> Manifest:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactCorruptError(f"{root / MANIFEST} is not JSON: {error}; {_AGAIN}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtifactCorruptError(f"{root / MANIFEST} is not a manifest of RecReplay")
    if data.get("version") != VERSION:
        raise ArtifactVersionError(
            f"{root} has format version {data.get('version')}; this RecReplay reads version "
            f"{VERSION}; {_AGAIN}, or install the RecReplay that made it"
        )
    try:
        manifest = Manifest.from_json(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactCorruptError(
            f"{root / MANIFEST} is incomplete: {error!r}; {_AGAIN}"
        ) from error
    sizes = [bucket.size for bucket in manifest.buckets]
    proved = [parity.bucket for parity in manifest.parity]
    if not sizes or sizes[0] < 1 or sizes != sorted({*sizes}) or proved != sizes:
        raise ArtifactCorruptError(
            f"{root / MANIFEST} has buckets {sizes} and stored requests for {proved}; expected "
            f"ascending sizes of 1 or more, and a request for each; {_AGAIN}"
        )
    return manifest


def device_kind(name: str) -> str:
    """`cpu` or `cuda`, of which `name` is one. Raises RecReplayError where it is none."""
    kind, _, index = name.partition(":")
    if (kind, index) == ("cpu", "") or (kind == "cuda" and (not index or index.isdecimal())):
        return kind
    raise RecReplayError(f"unknown device {name!r}; expected 'cpu', 'cuda' or 'cuda:N'")


def check_environment(artifact: Artifact, found: Mapping[str, str]) -> None:
    """Refuse an artifact that was captured for something else than `found`.

    A processor may have more instructions than packages were compiled with, and not fewer: the
    first that is missing would end the process.
    """
    expected = dict(artifact.manifest.environment)
    compiled = set(expected.pop("instructions", "").split())
    wrong = [
        f"{k}: expected {expected[k]}, found {found.get(k, 'nothing')}"
        for k in expected
        if expected[k] != found.get(k)
    ]
    advice = f"{_AGAIN} here, or load it where it was made for"
    here = set(found.get("instructions", "").split())
    missing = compiled - here if here else set()  # where the system does not say, nothing is known
    if missing and any(p.compiler != "eager" for p in artifact.manifest.packages.values()):
        wrong.append(f"instructions: this processor lacks {', '.join(sorted(missing))}")
        advice = (
            f"{_AGAIN} with processor='x86-64-v3' or 'x86-64-v4', which any of that level runs, or "
            "load it where it was made for"
        )
    if wrong:
        raise EnvironmentMismatchError(
            f"{artifact.path} was captured for another environment ({'; '.join(wrong)}); {advice}"
        )
