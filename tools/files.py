"""Files that commands read and write: requests and results as .npz, reports as JSON.

Nothing is unpickled. A file is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from recreplay.runtime.errors import InputError, InputTypeError, RecReplayError
from recreplay.runtime.scratch import drop_scratch, make_scratch

Array = np.ndarray[Any, Any]


def why_unread(error: Exception) -> str:
    """What `np.load` says, but for its advice to unpickle whatever it does not know."""
    if "allow_pickle" in str(error):
        return "numpy did not write it, or it holds Python objects"
    return str(error)


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of an .npz file by name. Pickled objects are refused, not loaded."""
    if not path.is_file():
        raise InputError(f"no file at {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not an .npz file: {why_unread(error)}") from error
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise InputError(
            f"{path} holds one array without a name; expected an .npz with an array for each input "
            "(numpy.savez)"
        )
    arrays = {}
    with loaded:
        for name in loaded.files:
            try:
                arrays[name] = loaded[name]
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                if "allow_pickle" in str(error):
                    raise InputTypeError(
                        f"{path}: input {name!r} is a pickled Python object, which is never "
                        "loaded; expected a numeric array"
                    ) from error
                raise InputError(f"{path}: input {name!r} cannot be read: {error}") from error
    return arrays


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays."""
    _write(path, lambda file: np.savez(file, allow_pickle=False, **dict(arrays)))


def write_json(path: Path, data: Any) -> None:
    """Write a report."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    _write(path, lambda file: file.write(text.encode()))


def check_output(path: Path | None) -> None:
    """Raises, before long work, where its result could not be written to `path`."""
    if path is None:
        return
    if path.is_dir():
        raise RecReplayError(f"cannot write {path}: it is a directory; name a file in it")
    there = next(p for p in path.absolute().parents if p.exists())
    try:  # what a user may do cannot be told from modes alone
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise RecReplayError(
            f"cannot write {path}: {there}: {error.strerror}; choose another place"
        ) from error


def folder_size(path: Path) -> int:
    """Bytes of all files below `path`."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for one command; if the process is killed, the next such command removes it."""
    folder = make_scratch()
    try:
        yield folder
    finally:
        drop_scratch(folder)


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise RecReplayError(f"cannot write {path}: {error}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        os.chmod(scratch, 0o644)  # mkstemp makes files for their owner alone
        os.replace(scratch, path)
    except OSError as error:
        raise RecReplayError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
