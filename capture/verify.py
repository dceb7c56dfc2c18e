"""Prove every bucket: replay random requests, full and padded, against the eager model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from recreplay.capture.ingest import Ingested
from recreplay.capture.sampling import Room, sample_request
from recreplay.capture.user_side import for_eager
from recreplay.runtime.errors import ParityError
from recreplay.runtime.lane import Lane
from recreplay.runtime.manifest import Parity
from recreplay.runtime.request import RequestChecker
from recreplay.runtime.spec import IdBound


def verify(
    model: Ingested,
    lane: Lane,
    checker: RequestChecker,
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
        requests = 0
        for rows, room in _cases(model, size):
            request = sample_request(
                model.inputs,
                bounds,
                model.example,
                rows,
                seed=1000 * size + requests,
                users=model.users,
                room=room,
                bucket=size,
            )
            requests += 1
            expected = model.eager(
                {k: v.to(device) for k, v in for_eager(model.inputs, request, rows).items()}
            )
            _poison(lane)
            prepared = lane.prepare_in(size, rows)
            prepared.fill(checker.check({k: v.numpy() for k, v in request.items()})[0])
            prepared.replay()
            for spec, (_, got) in zip(model.outputs, prepared.outputs, strict=True):
                want = expected[spec.name].detach().cpu().numpy()
                gap = np.abs(got.astype(np.float64) - want)
                if not np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True):
                    raise ParityError(
                        f"bucket {size}, {rows} rows: output {spec.name!r} differs from the eager "
                        "model "
                        f"by {np.nanmax(gap):.3g} (rtol {rtol}, atol {atol}); nothing was written. "
                        f"{_advice(model)}"
                    )
                worst_abs = max(worst_abs, float(np.nanmax(gap)))
                scale = np.maximum(np.abs(want), atol)
                worst_rel = max(worst_rel, float(np.nanmax(gap / scale)))
            if rows == size and room == "typical":
                for name, tensor in request.items():
                    stored[f"{size}/in/{name}"] = tensor.contiguous()
                for spec in model.outputs:
                    answer = expected[spec.name].detach().cpu().contiguous()
                    stored[f"{size}/out/{spec.name}"] = answer.clone()
        parity.append(Parity(size, requests, worst_abs, worst_rel, rtol, atol))
    return parity, stored


def _cases(model: Ingested, size: int) -> Iterator[tuple[int, Room]]:
    """Numbers of rows to prove a bucket with; jagged inputs also without values and full of
    them."""
    counts = sorted({1, size // 2 + 1, size - 1, size} & set(range(1, size + 1)))
    for rows in counts:
        yield rows, "typical"
        if any(spec.kind == "values" for spec in model.inputs):
            yield rows, "none"
            yield rows, "full"


def _advice(model: Ingested) -> str:
    if model.users:
        return (
            "Operators on user inputs that mix the rows of a batch give another answer once per "
            "user; capture without user_inputs to see whether they are the cause"
        )
    return "Capture with compiler='eager' or rewrites=() to see which step is the cause"


def _poison(lane: Lane) -> None:
    """Fill staging with bytes that no request holds, so that a row left over would show."""
    lane.host_inputs().fill(0x7F)
