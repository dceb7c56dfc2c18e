"""The weights of an artifact: each stored once, stacked ones inside of their stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from recreplay.capture.ingest import Ingested
from recreplay.capture.planning import Planned, Survey, sources
from recreplay.capture.writer import save_tensors
from recreplay.runtime.artifact import WEIGHTS
from recreplay.runtime.manifest import TableView
from recreplay.runtime.weight_copies import KINDS
from recreplay.runtime.weights import with_views


def write_weights(
    folder: Path, model: Ingested, planned: Sequence[Planned], known: Survey
) -> dict[str, TableView]:
    """Write what the planned buckets read; returns the weights that are views of a stack."""
    stored, tables = _lay_out(model, planned, known)
    save_tensors(folder / WEIGHTS, stored)
    return tables


def weight_tensors(
    model: Ingested, planned: Sequence[Planned], known: Survey, device: torch.device
) -> dict[str, torch.Tensor]:
    """The weights as a runtime would have them on `device`."""
    stored, tables = _lay_out(model, planned, known)
    return with_views({name: value.detach().to(device) for name, value in stored.items()}, tables)


def _lay_out(
    model: Ingested, planned: Sequence[Planned], known: Survey
) -> tuple[dict[str, torch.Tensor], dict[str, TableView]]:
    state: Mapping[str, torch.Tensor] = {**model.exported.state_dict, **model.exported.constants}
    read = {name for p in planned for name in sources(p.program.graph, "weight", *KINDS)}
    tables: dict[str, TableView] = {}
    stored: dict[str, torch.Tensor] = {}
    grouped: set[str] = set()
    for group in known.groups:
        if group.name in read:
            tables |= group.views(read)
            stored[group.name] = group.flat.store(state)
            grouped |= {stack.name for stack, _ in group.stacks}
    for stack in (*known.tables, *known.branches):
        if stack.name not in read or stack.name in grouped:
            continue
        for member, start in zip(stack.members, stack.starts, strict=True):
            tables[member] = TableView(stack.name, start, len(state[member]))
        stored[stack.name] = stack.store(state)
    for name in sorted(read - set(stored) - set(tables)):
        stored[name] = state[name]
    return stored, tables
