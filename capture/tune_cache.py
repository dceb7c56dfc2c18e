"""What the tuner measured before, so that one program on one device is measured once.

One JSON file per program, device and effort below `$XDG_CACHE_HOME/recreplay/tune` (`~/.cache` by
default). A file that cannot be read is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recreplay.capture.cache_folder import cache_folder
from recreplay.runtime.manifest import Candidate
from recreplay.runtime.processor import processor


def cache_key(
    codes: Sequence[Mapping[int, Sequence[str]]],
    weights: Mapping[str, Sequence[int]],
    environment: Mapping[str, str],
    *settings: object,
) -> str:
    """Names a tuning: `codes[i][bucket]` are the packages of choice i, `weights` their shapes."""
    told = {
        "codes": [{str(size): list(keys) for size, keys in choice.items()} for choice in codes],
        "weights": {name: list(shape) for name, shape in weights.items()},
        "environment": dict(environment),
        "machine": [platform.machine(), processor(), os.cpu_count()],
        "settings": [str(s) for s in settings],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def recall(key: str) -> list[Candidate] | None:
    """The candidates measured under this key, or None."""
    try:
        data: list[dict[str, Any]] = json.loads(_file(key).read_text())
        return [Candidate.from_json(c) for c in data]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def remember(key: str, candidates: Sequence[Candidate]) -> None:
    """Keep the candidates. Where the cache cannot be written, the next capture measures again."""
    path = _file(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump([asdict(c) for c in candidates], file)
        os.replace(file.name, path)
    except OSError:
        return


def _file(key: str) -> Path:
    return cache_folder("tune") / f"{key}.json"
