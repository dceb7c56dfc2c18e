"""Random requests for a captured model: ids uniform in their tables, the rest drawn from the
example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from safetensors.torch import load_file

from recreplay.capture.division import division_of, starts_of
from recreplay.runtime.artifact import SELFTEST, Artifact, stored_lengths, stored_request
from recreplay.runtime.spec import IdBound, InputSpec

Room = Literal["typical", "none", "full"]


def sample_stored(
    artifact: Artifact, rows: int, seeds: Sequence[int]
) -> list[dict[str, torch.Tensor]]:
    """A request for each seed, drawn from the largest that the artifact stores: no model is
    needed."""
    manifest = artifact.manifest
    stored = load_file(artifact.path / SELFTEST)
    example = stored_request(stored, manifest.buckets[-1].size)
    lengths = stored_lengths(stored)
    return [
        sample_request(
            manifest.inputs,
            manifest.bounds,
            example,
            rows,
            seed,
            users=manifest.users,
            lengths=lengths,
        )
        for seed in seeds
    ]


def usual_lengths(
    inputs: Sequence[InputSpec], example: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """How many values the rows of the example have, by the input that divides them."""
    members = {spec.along: spec.name for spec in inputs if spec.kind == "values"}
    return {
        spec.name: _lengths(spec, example, len(example[members[spec.name]]))
        for spec in inputs
        if spec.name in members
    }


def sample_request(
    inputs: Sequence[InputSpec],
    bounds: Sequence[IdBound],
    example: Mapping[str, torch.Tensor],
    rows: int,
    seed: int,
    *,
    users: int = 0,
    room: Room = "typical",
    bucket: int | None = None,
    lengths: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """`rows` random rows on the CPU, for 1 to `users` users where the model has a user side.

    Each value comes from the same column of the example, so that it has a meaning; floats are
    moved by a tenth of their spread, so that few rows are alike; bounded ids are uniform in
    their table. Jagged inputs have as many values per row as rows of the example do, or as
    `lengths` says, cut to the capacity of the rows; with `room`, none at all or all that `bucket`
    (by default as many rows) holds.
    """
    generator = torch.Generator().manual_seed(seed)
    request: dict[str, torch.Tensor] = {}
    usual = usual_lengths(inputs, example) if lengths is None else lengths
    present = int(torch.randint(1, users + 1, (), generator=generator)) if users else 0
    for spec in inputs:
        count = present if spec.user else rows
        if spec.kind == "index":
            request[spec.name] = torch.randint(0, present, (rows,), generator=generator)
        elif spec.kind == "rows":
            source = example[spec.name].detach().cpu()
            request[spec.name] = _draw(spec.name, source, count, bounds, generator)
        elif spec.kind not in ("values", "mask"):
            members = [s for s in inputs if s.along == spec.name]
            most = members[0].capacity * (users if spec.user else bucket or rows)
            drawn = _some_lengths(usual[spec.name], count, most, room, generator)
            request[spec.name] = division_of(spec, drawn).to(example[spec.name].dtype)
            for member in members:
                source = example[member.name].detach().cpu()
                total = int(drawn.sum())
                request[member.name] = _draw(member.name, source, total, bounds, generator)
    return {spec.name: request[spec.name] for spec in inputs if spec.kind != "mask"}


def _draw(
    name: str,
    source: torch.Tensor,
    count: int,
    bounds: Sequence[IdBound],
    generator: torch.Generator,
) -> torch.Tensor:
    """`count` items like those of `source`; zeros where it has none."""
    if not len(source):
        source = torch.zeros((1, *source.shape[1:]), dtype=source.dtype)
    flat = source.reshape(source.shape[0], -1)
    pick = torch.randint(0, flat.shape[0], (count, flat.shape[1]), generator=generator)
    values = flat.gather(0, pick)
    if values.is_floating_point():
        values = _moved(values, flat.double(), generator)
    values = values.reshape(count, *source.shape[1:])
    for bound in bounds:
        if bound.input == name:
            where = bound.of(values)
            least, limit = _limits(bound, bounds)
            if where.dtype == torch.bool:
                limit = min(limit, 2)
            elif not where.is_floating_point():
                limit = min(limit, torch.iinfo(where.dtype).max + 1)
            where.copy_(torch.randint(least, limit, where.shape, generator=generator))
    return values


def _moved(values: torch.Tensor, known: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`values` moved by a tenth of the spread of their columns in the example, `known`, within what
    is known there: the model may make ids of them. Whole numbers, which may be ids, stay."""
    spread = known.std(dim=0, correction=0).nan_to_num(0.0)  # of one value, or with infinity: none
    moves = (known != known.round()).any(0) & (spread > 0)
    noise = torch.randn(values.shape, generator=generator) * spread * 0.1
    moved = (values.double() + noise).clamp(known.amin(0), known.amax(0)).to(values.dtype)
    return torch.where(moves, moved, values)


def ids_below(
    example: Mapping[str, torch.Tensor], bounds: Sequence[IdBound]
) -> dict[str, tuple[int, IdBound]]:
    """By input, the least id of the example where no request may have one so low."""
    found: dict[str, tuple[int, IdBound]] = {}
    for bound in bounds:
        values = example[bound.input]
        ids = bound.of(values)
        least = int(ids.amin()) if ids.numel() else bound.least
        if least < bound.least:
            found.setdefault(bound.input, (least, bound))
    return found


def _limits(bound: IdBound, bounds: Sequence[IdBound]) -> tuple[int, int]:
    """Where ids of `bound` begin and end if the same ids are read from other tables too."""
    same = [
        b
        for b in bounds
        if b.input == bound.input
        and (None in (b.column, bound.column) or b.column == bound.column or b.axis != bound.axis)
    ]
    return max(b.least for b in same), min(b.rows for b in same)


def _lengths(spec: InputSpec, example: Mapping[str, torch.Tensor], total: int) -> torch.Tensor:
    """How many values the rows of the example have."""
    division = example[spec.name].detach().cpu().to(torch.int64)
    return starts_of(spec, division, total).diff()


def _some_lengths(
    usual: torch.Tensor, rows: int, most: int, room: Room, generator: torch.Generator
) -> torch.Tensor:
    if room == "none":
        return torch.zeros(rows, dtype=torch.int64)
    if room == "full":
        cuts = torch.randint(0, most + 1, (rows - 1,), generator=generator).sort().values
        return torch.cat([torch.tensor([0]), cuts, torch.tensor([most])]).diff()
    lengths = usual[torch.randint(0, len(usual), (rows,), generator=generator)]
    ends = lengths.cumsum(0).clamp(max=most)
    return torch.cat([torch.tensor([0]), ends]).diff()
