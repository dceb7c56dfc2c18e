"""Queries for a funnel: cut from a file, with labels or without, or drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recreplay.runtime import Funnel
from recreplay.runtime.errors import InputError
from recreplay.tools.files import read_npz

Array = np.ndarray[Any, Any]
Request = dict[str, Any]


class Query(NamedTuple):
    """`labels`, 0 or 1 for each row; None where nobody knows."""

    request: Request
    labels: Array | None


def from_file(path: Path, funnel: Funnel, items: int, most: int, labels: str | None) -> list[Query]:
    """Queries of `items` consecutive rows each, at most `most`. Raises InputError."""
    other = [spec.name for spec in funnel.inputs if not spec.by_row]
    if other:
        raise InputError(
            f"inputs {', '.join(other)} are not by row, so that a file cannot be cut into queries; "
            "leave --inputs out, and queries are drawn at random"
        )
    arrays = read_npz(path)
    names = [spec.name for spec in funnel.inputs] + ([] if labels is None else [labels])
    if missing := [name for name in names if name not in arrays]:
        raise InputError(f"{path} has no {', '.join(missing)}; it has {', '.join(arrays)}")
    if single := [name for name in names if not arrays[name].ndim]:
        raise InputError(f"{path}: {', '.join(single)} is one value, not one for each row")
    rows = {len(arrays[name]) for name in names}
    if len(rows) > 1:
        counts = ", ".join(f"{name} {len(arrays[name])}" for name in names)
        raise InputError(f"{path} has arrays of several numbers of rows: {counts}")
    count = min(most, rows.pop() // items)
    if not count:
        raise InputError(
            f"{path} has {len(arrays[names[0]])} rows; a query has {items} of them (--items)"
        )
    if labels is not None:
        known = arrays[labels]
        if known.ndim != 1 or not np.isin(known, (0, 1)).all():
            raise InputError(f"{path}: labels {labels!r} are not one 0 or 1 for each row")
    return [
        Query(
            {spec.name: arrays[spec.name][at : at + items] for spec in funnel.inputs},
            None if labels is None else arrays[labels][at : at + items],
        )
        for at in range(0, count * items, items)
    ]


def at_random(funnel: Funnel, items: int, count: int, seed: int) -> list[Query]:
    """Queries that all stages can answer, drawn from what their artifacts store."""
    from safetensors.torch import load_file

    from recreplay.capture.sampling import sample_request
    from recreplay.runtime.artifact import SELFTEST, stored_lengths, stored_request
    from recreplay.tools.bench.requests import as_arrays

    example: dict[str, Any] = {}
    lengths: dict[str, Any] = {}
    for stage in reversed(funnel.stages):
        manifest = stage.runtime.manifest
        stored = load_file(stage.runtime.path / SELFTEST)
        example |= stored_request(stored, manifest.buckets[-1].size)
        lengths |= stored_lengths(stored)
    bounds = [bound for stage in funnel.stages for bound in stage.runtime.manifest.bounds]
    return [
        Query(as_arrays(request), None)
        for request in (
            sample_request(
                funnel.inputs, bounds, example, items, at, users=_users(funnel), lengths=lengths
            )
            for at in range(seed, seed + count)
        )
    ]


def _users(funnel: Funnel) -> int:
    """A query has the candidates of one user."""
    return int(any(spec.user for spec in funnel.inputs))
