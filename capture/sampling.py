"""Random requests for a captured model: ids uniform in their tables, the rest drawn from the
example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from recreplay.runtime.spec import IdBound, InputSpec


def sample_request(
    inputs: Sequence[InputSpec],
    bounds: Sequence[IdBound],
    example: Mapping[str, torch.Tensor],
    rows: int,
    seed: int,
) -> dict[str, torch.Tensor]:
    """`rows` random rows on the CPU.

    Each value comes from the same column of the example, so that it has a meaning; floats are
    moved by a tenth of their spread, so that no two rows are alike; bounded ids are uniform in
    their table.
    """
    generator = torch.Generator().manual_seed(seed)
    request = {}
    for spec in inputs:
        source = example[spec.name].detach().cpu()
        flat = source.reshape(source.shape[0], -1)
        pick = torch.randint(0, flat.shape[0], (rows, flat.shape[1]), generator=generator)
        values = flat.gather(0, pick)
        if values.is_floating_point():
            spread = flat.float().std(dim=0, keepdim=True).nan_to_num(0.0)
            noise = torch.randn(values.shape, generator=generator) * spread * 0.1
            values = (values.float() + noise).to(values.dtype)
        values = values.reshape(rows, *source.shape[1:])
        for bound in bounds:
            if bound.input == spec.name:
                where = values if bound.column is None else values[:, bound.column]
                limit = _limit(bound, bounds)
                if not where.is_floating_point():
                    limit = min(limit, torch.iinfo(where.dtype).max + 1)
                where.copy_(torch.randint(0, limit, where.shape, generator=generator))
        request[spec.name] = values
    return request


def _limit(bound: IdBound, bounds: Sequence[IdBound]) -> int:
    """What the ids of `bound` may reach where the same ids are read from other tables too."""
    return min(
        b.rows
        for b in bounds
        if b.input == bound.input and (None in (b.column, bound.column) or b.column == bound.column)
    )
