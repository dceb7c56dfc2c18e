"""The weights of an artifact: each stored once, stacked ones inside of their stack, and those that
are made of others beside what they are made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from recreplay.capture.ingest import Ingested
from recreplay.capture.lowering import Lowering
from recreplay.capture.planning import Planned, Survey, sources
from recreplay.capture.weight_stacks import WeightStack
from recreplay.capture.writer import save_tensors
from recreplay.runtime.artifact import MADE, WEIGHTS
from recreplay.runtime.errors import CaptureError
from recreplay.runtime.lowered import SCALES, lower, part_names, unfit
from recreplay.runtime.made_weights import WEIGHT, Made, write_made
from recreplay.runtime.manifest import Manifest, TableView
from recreplay.runtime.settled import digest
from recreplay.runtime.weight_copies import KINDS
from recreplay.runtime.weights import memory_of, with_views


def write_weights(
    folder: Path, manifest: Manifest, model: Ingested, planned: Sequence[Planned], known: Survey
) -> Manifest:
    """Write what the planned buckets read, and say in the manifest which weights are views of a
    stack, which are stored as something else than float32, which have several names, and which
    nothing reads; and beside it, how those are made that the model computes of others."""
    stored, tables, made = _lay_out(model, planned, known)
    save_tensors(folder / WEIGHTS, stored)
    if made:
        write_made(folder / MADE, made)
    names = {*stored, *tables}
    kinds: Mapping[str, str] = known.lowering.stored()
    lowered = {name: kinds[name] for name in sorted(kinds) if name in names}
    tied = _tied_names(model, names)
    unread = tuple(sorted(set(model.exported.state_dict) - names - set(tied)))
    notices = (*manifest.notices, *_parted(model, names))
    state = model.exported.state_dict
    settled = {name: digest(state[name]) for name in sorted(model.settled & state.keys())}
    return replace(
        manifest,
        tables=tables,
        lowered=lowered,
        tied=tied,
        unread=unread,
        settled=settled,
        notices=notices,
    )


def weight_tensors(
    model: Ingested, planned: Sequence[Planned], known: Survey, device: torch.device
) -> dict[str, torch.Tensor]:
    """The weights as a runtime would have them on `device`."""
    stored, tables, _ = _lay_out(model, planned, known)
    return with_views({name: value.detach().to(device) for name, value in stored.items()}, tables)


def _tied_names(model: Ingested, read: Collection[str]) -> dict[str, str]:
    """Other names of the model for weights that are read, as of tables that two features share."""
    state = model.exported.state_dict
    by_memory = {memory_of(state[name]): name for name in sorted(read) if name in state}
    tied = {name: by_memory.get(memory_of(value)) for name, value in state.items()}
    return {k: weight for k, weight in sorted(tied.items()) if weight and k not in read}


def _parted(model: Ingested, read: Collection[str]) -> list[str]:
    """A notice for each weight that is a part of another one's memory in the model, and is not in
    the artifact: writing one there leaves the other as it is."""
    state = model.exported.state_dict
    found = []
    inside: tuple[int, str] = (0, "")  # where the last whole weight ends
    extents = {name: _extent(state[name]) for name in read if name in state}
    # The larger of two that begin alike first.
    for name, (begin, end) in sorted(extents.items(), key=lambda e: (e[1][0], -e[1][1])):
        whole = inside[1]
        if begin < inside[0] and memory_of(state[name]) != memory_of(state[whole]):
            found.append(
                f"NOTICE: weights {whole!r} and {name!r} share memory in the model and are stored "
                "apart; update both where one changes"
            )
        elif state[name].is_contiguous():
            inside = (end, name)
    return found


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The first byte of a tensor and the one behind its last."""
    if not tensor.numel():
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize


def _lay_out(
    model: Ingested, planned: Sequence[Planned], known: Survey
) -> tuple[dict[str, torch.Tensor], dict[str, TableView], dict[str, Made]]:
    """What is stored, which weights are views of it, and how those are made that are made."""
    state: dict[str, torch.Tensor] = {**model.exported.state_dict, **model.exported.constants}
    everything = {name for p in planned for name in sources(p.program.graph, "weight", *KINDS)}
    read = {name for name in everything if not name.startswith(SCALES)}
    made = _made(planned, known, read)
    if made:
        constants = {f"const:{k}": v for p in planned for k, v in p.program.constants.items()}
        given = {f"{WEIGHT}{name}": state[name].cpu() for m in made.values() for name in m.weights}
        state |= {name: how.make(constants | given) for name, how in made.items()}
        read |= {name for how in made.values() for name in how.weights}
    tables: dict[str, TableView] = {}
    stored: dict[str, torch.Tensor] = {}
    grouped: set[str] = set()
    for group in known.groups:
        if group.name in read:
            members = group.flat.members
            tables |= group.views(read)
            stored |= group.store(_all_parts(members, state, known.lowering))
            grouped |= {stack.name for stack in group.stacks}
    for stack in (*known.tables, *known.branches):
        if stack.name not in read or stack.name in grouped:
            continue
        for member, start in zip(stack.members, stack.starts, strict=True):
            tables[member] = TableView(stack.name, start, len(state[member]))
        stored |= _stack_parts(stack, state, known.lowering)
    for name in sorted(read - set(stored) - set(tables)):
        stored |= _parts(name, state[name], known.lowering)
    return stored, tables, made


def _made(planned: Sequence[Planned], known: Survey, read: Collection[str]) -> dict[str, Made]:
    """The weights among those that are read, or lie in what is, that are made of others."""
    stacks = [*known.tables, *known.branches, *(group.flat for group in known.groups)]
    laid = {name for stack in stacks if stack.name in read for name in stack.members}
    made = {name: how for p in planned for name, how in p.program.made.items()}
    return {name: how for name, how in sorted(made.items()) if name in read or name in laid}


def _stack_parts(
    stack: WeightStack, state: Mapping[str, torch.Tensor], lowering: Lowering
) -> dict[str, torch.Tensor]:
    """The storage of a stack and, where its rows are int8, that of their scales."""
    parts = _all_parts(stack.members, state, lowering)
    stored = {stack.name: stack.store(parts)}
    scales = {name: parts[SCALES + name] for name in stack.members if SCALES + name in parts}
    if scales:
        stored[SCALES + stack.name] = replace(stack, row=(2,)).store(scales)
    return stored


def _all_parts(
    names: Sequence[str], state: Mapping[str, torch.Tensor], lowering: Lowering
) -> dict[str, torch.Tensor]:
    """What is stored for several weights, by name."""
    return {k: v for name in names for k, v in _parts(name, state[name], lowering).items()}


def _parts(name: str, value: torch.Tensor, lowering: Lowering) -> dict[str, torch.Tensor]:
    """What is stored for one weight, by name."""
    kind = lowering.stored().get(name)
    if kind is None:
        return {name: value}
    problem = unfit(value, kind)
    if problem is not None:
        raise CaptureError(
            f"weight {name!r}: {problem}; capture it with fp32 for what is {kind} now"
        )
    return dict(zip(part_names(name, kind), lower(value, kind), strict=True))
