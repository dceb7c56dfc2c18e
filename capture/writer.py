"""Write an artifact so that it is either there, whole and sealed, or not there at all."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from recreplay.runtime.artifact import MANIFEST, SEAL, file_digest
from recreplay.runtime.errors import CaptureError
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.scratch import is_alive

_OPEN: set[Path] = set()  # folders that this process is capturing into
_OPENING = Lock()


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
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaptureError(f"nothing can be written to {out.parent}: {error}") from error
    folder = out.parent / f".{out.name}.capturing-{os.getpid()}"
    with _OPENING:
        if folder in _OPEN:
            raise CaptureError(f"{out} is being captured by this process already")
        _OPEN.add(folder)
    try:
        _remove_stale(out, folder)
        folder.mkdir()
        yield folder
        _sync_tree(folder)
        if out.exists():
            old = out.parent / f".{out.name}.capturing-old-{os.getpid()}"
            out.rename(old)
            try:
                folder.rename(out)
            except BaseException:
                old.rename(out)
                raise
            shutil.rmtree(old)
        else:
            folder.rename(out)
        _sync(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _OPEN.discard(folder)


def _remove_stale(out: Path, folder: Path) -> None:
    """What captures to `out` left when they were killed; `folder` is to be this one's."""
    for stale in out.parent.glob(f".{glob.escape(out.name)}.capturing-*"):
        # In a container every capture may have the number that one killed before it had.
        if stale == folder or not is_alive(stale.name.rpartition("-")[2]):
            if "capturing-old-" in stale.name and not out.exists():
                stale.rename(out)  # killed between the two renames of an overwrite
            else:
                shutil.rmtree(stale, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file. Tensors that share memory are written each for itself."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    try:
        save_file(plain, path)
    except SafetensorError as error:  # the system's own, as text
        raise CaptureError(f"cannot write {path}: {error}") from error


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
