"""Write an artifact so that it is either there, whole and sealed, or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from recreplay.runtime.artifact import MANIFEST, SEAL, file_digest
from recreplay.runtime.errors import CaptureError
from recreplay.runtime.manifest import Manifest


@contextmanager
def artifact_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when the block ends well, and goes away otherwise.

    Folders left by captures that were killed are removed as well.
    """
    out = out.absolute()
    if out.exists() and not overwrite:
        raise CaptureError(
            f"{out} exists already; choose another place, or overwrite it (--overwrite)"
        )
    if out.exists() and not (out / MANIFEST).is_file():
        raise CaptureError(f"{out} exists and is not an artifact, so it is not overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)
    for stale in out.parent.glob(f".{out.name}.capturing-*"):
        if not _alive(stale.name.rpartition("-")[2]):
            shutil.rmtree(stale, ignore_errors=True)
    folder = out.parent / f".{out.name}.capturing-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
        _sync_tree(folder)
        if out.exists():
            old = out.parent / f".{out.name}.capturing-old-{os.getpid()}"
            out.rename(old)
            folder.rename(out)
            shutil.rmtree(old)
        else:
            folder.rename(out)
        _sync(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file. Tensors that share memory are written each for itself."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    save_file(plain, path)


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with the digest of every file, and the digest of the manifest."""
    files = {
        str(file.relative_to(folder)): file_digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    sealed = replace(manifest, files=files)
    raw = json.dumps(sealed.to_json(), indent=1).encode()
    (folder / MANIFEST).write_bytes(raw)
    (folder / SEAL).write_text(hashlib.sha256(raw).hexdigest())
    return sealed


def _alive(pid: str) -> bool:
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
