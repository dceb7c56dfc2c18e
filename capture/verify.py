"""Prove every bucket: replay random requests, full and padded, against the eager model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from recreplay.capture.ingest import Ingested
from recreplay.capture.sampling import sample_request
from recreplay.runtime.errors import ParityError
from recreplay.runtime.lane import Lane
from recreplay.runtime.manifest import Parity
from recreplay.runtime.spec import IdBound


def verify(
    model: Ingested,
    lane: Lane,
    sizes: Sequence[int],
    bounds: Sequence[IdBound],
    rtol: float,
    atol: float,
) -> tuple[list[Parity], dict[str, torch.Tensor]]:
    """A parity record for each bucket, and one request with its eager answer to store for load.

    Raises `ParityError` where a replay differs from eager by more than `atol + rtol * |eager|`.
    """
    device = next(iter(model.example.values())).device
    parity, stored = [], {}
    for size in sizes:
        worst_abs = worst_rel = 0.0
        counts = sorted({1, size // 2 + 1, size - 1, size} & set(range(1, size + 1)))
        for seed, rows in enumerate(counts):
            request = sample_request(
                model.inputs, bounds, model.example, rows, seed=1000 * size + seed
            )
            expected = model.eager({k: v.to(device) for k, v in request.items()})
            _poison(lane)
            prepared = lane.prepare_in(size, rows)
            prepared.fill([request[name].numpy() for name in lane.order])
            prepared.replay()
            for spec, (_, got) in zip(model.outputs, prepared.outputs, strict=True):
                want = expected[spec.name].detach().cpu().numpy()
                gap = np.abs(got.astype(np.float64) - want)
                if not np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True):
                    raise ParityError(
                        f"bucket {size}, {rows} rows: output {spec.name!r} differs from the eager "
                        "model "
                        f"by {np.nanmax(gap):.3g} (rtol {rtol}, atol {atol}); nothing was written. "
                        "Capture with compiler='eager' or rewrites=() to see which step is the "
                        "cause"
                    )
                worst_abs = max(worst_abs, float(np.nanmax(gap)))
                scale = np.maximum(np.abs(want), atol)
                worst_rel = max(worst_rel, float(np.nanmax(gap / scale)))
            if rows == size:
                for name, tensor in request.items():
                    stored[f"{size}/in/{name}"] = tensor.contiguous()
                for spec in model.outputs:
                    answer = expected[spec.name].detach().cpu().contiguous()
                    stored[f"{size}/out/{spec.name}"] = answer.clone()
        parity.append(Parity(size, len(counts), worst_abs, worst_rel, rtol, atol))
    return parity, stored


def _poison(lane: Lane) -> None:
    """Fill staging with bytes that no request holds, so that a row left over would show."""
    lane.host_inputs().fill(0x7F)
