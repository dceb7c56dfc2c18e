"""Prove every bucket: replay random requests, full and padded, against the eager model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from recreplay.capture.decisions import ROUNDING, decided
from recreplay.capture.eager_model import run_eager
from recreplay.capture.ingest import Ingested
from recreplay.capture.precision import Precision
from recreplay.capture.sampling import Room, sample_request, usual_lengths
from recreplay.capture.user_side import for_eager
from recreplay.runtime.artifact import stored_request
from recreplay.runtime.closeness import all_close, column_scale
from recreplay.runtime.errors import ParityError
from recreplay.runtime.lane import Lane
from recreplay.runtime.manifest import OutputParity, Parity
from recreplay.runtime.request import RequestChecker
from recreplay.runtime.spec import IdBound

_LENGTHS = 4096  # rows whose numbers of values are stored, at most
_SCALE_REQUESTS = 4  # of the largest bucket, to see how large an output gets
# Another order of the same sums, on another machine, turns some roundings of a lowered trunk the
# other way: each far less than all of them together, which the bound of errors is for.
_SHARE_OF_BOUND = 0.1

Array = np.ndarray[Any, Any]


def stored_requests(
    model: Ingested, sizes: Sequence[int], bounds: Sequence[IdBound]
) -> dict[str, torch.Tensor]:
    """A request for each bucket that fills it, as `BUCKET/in/NAME`, and as `lengths/NAME` how many
    values rows of the example have, of which a request of one user shows one.

    Raises `CaptureError` where the model itself cannot answer the largest: a GPU that records on
    it would be lost to the process.
    """
    requests: dict[str, torch.Tensor] = {}
    for size in sizes:
        request = _request(model, bounds, size, size, "typical", 0)
        requests |= {f"{size}/in/{name}": tensor.contiguous() for name, tensor in request.items()}
    _eager(model, request, sizes[-1])
    lengths = usual_lengths(model.inputs, model.example)
    return requests | {f"lengths/{k}": v[:_LENGTHS].contiguous() for k, v in lengths.items()}


def verify(
    model: Ingested,
    lane: Lane,
    checker: RequestChecker,
    stored: Mapping[str, torch.Tensor],
    sizes: Sequence[int],
    bounds: Sequence[IdBound],
    rtol: float,
    atol: float,
    precision: Precision,
) -> tuple[list[Parity], dict[str, torch.Tensor]]:
    """A parity record for each bucket, and the answers to the stored requests.

    Raises `ParityError` where a replay differs from eager by more than `atol + rtol * scale` or,
    with lowered precision, by more than `max_error` times the scale of the output. The scale is
    that of a column, or the value itself where that is larger, and of the whole output: the largest
    size in a few random requests. Ids and flags have to be the same, and what hangs on a decision
    that eager takes by a rounding (`decisions`) is not compared. The answer stored is that of eager
    or, with lowered precision, the replay's own, which says more about what another machine
    computes; with it as `BUCKET/decided/NAME` what of it is to be compared, if not all.
    """
    parity, answers = [], {}
    columns = _columns(model, bounds, sizes[-1])
    scales = {name: float(np.max(scale, initial=0.0)) for name, scale in columns.items()}
    most = precision.max_error
    off: tuple[float, float, float, Mapping[str, Any]] = (ROUNDING, rtol, atol, columns)
    if most is not None:
        off = (most * _SHARE_OF_BOUND, most, 0.0, scales)

    def is_near(name: str, got: Array, want: Array) -> bool:
        if most is None:
            return all_close(got, want, rtol, atol, columns[name])
        return _largest(got, want) <= most * scales[name]

    for size in sizes:
        worst_abs = worst_rel = 0.0
        worst = dict.fromkeys(scales, 0.0)
        requests = 0
        for rows, room in _cases(model, size):
            requests += 1
            keep = rows == size and room == "typical"
            request = (
                stored_request(stored, size)
                if keep
                else _request(model, bounds, size, rows, room, requests)
            )
            expected = _eager(model, request, rows)
            _poison(lane)
            prepared = lane.prepare_in(size, rows)
            prepared.fill(checker.check({k: v.numpy() for k, v in request.items()})[0])
            prepared.replay()
            firm: dict[str, Array] | None = None
            for spec, (_, got) in zip(model.outputs, prepared.outputs, strict=True):
                want = expected[spec.name]
                near = is_near(spec.name, got, want)
                if not near or (keep and want.dtype.kind != "f"):
                    if firm is None:
                        given = for_eager(model.inputs, request, rows)
                        firm = decided(model, given, expected, rows, *off)
                    got = np.where(firm[spec.name], got, want)
                    near = is_near(spec.name, got, want)
                with np.errstate(invalid="ignore"):  # infinity less itself
                    gap = np.abs(got.astype(np.float64) - want)
                far = _largest(got, want)
                worst[spec.name] = max(worst[spec.name], far)
                if not near and most is not None:
                    raise ParityError(
                        f"bucket {size}, {rows} rows: output {spec.name!r} differs from the "
                        f"float32 model by {far:.3g}, expected at most "
                        f"{most * scales[spec.name]:.3g} (max_error {most:g} of its scale "
                        f"{scales[spec.name]:.3g}) with {precision.describe()}; nothing was "
                        "written. Raise --max-error if the model may be that far off, or use fp32"
                    )
                if not near:
                    raise ParityError(
                        f"bucket {size}, {rows} rows: output {spec.name!r} differs from the eager "
                        "model "
                        f"by {np.nanmax(gap):.3g} (rtol {rtol} of its scale, atol {atol}); nothing "
                        "was written. "
                        f"{_advice(model)}"
                    )
                worst_abs = max(worst_abs, float(np.nanmax(gap, initial=0.0)))
                scale = np.maximum(np.abs(want), atol)
                worst_rel = max(worst_rel, float(np.nanmax(gap / scale, initial=0.0)))
            if keep:
                for name, mask in (firm or {}).items():
                    if not mask.all():
                        answers[f"{size}/decided/{name}"] = torch.from_numpy(mask)
                for spec in model.outputs:
                    own = dict(prepared.outputs)[spec.name]
                    answer = expected[spec.name] if most is None else own
                    answers[f"{size}/out/{spec.name}"] = torch.from_numpy(answer.copy())
        slack = 0.0 if most is None or precision.trunk == "fp32" else most * _SHARE_OF_BOUND
        outputs = tuple(
            OutputParity(name, far, scales[name], atol + slack * scales[name])
            for name, far in worst.items()
        )
        parity.append(Parity(size, requests, worst_abs, worst_rel, rtol, atol, outputs))
    return parity, answers


def undecided(answers: Mapping[str, torch.Tensor]) -> list[str]:
    """What of the stored answers is not compared, in words."""
    lines = []
    for key, mask in answers.items():
        size, kind, name = key.split("/", 2)
        if kind == "decided":
            open_places = int((~mask).sum())
            lines.append(
                f"bucket {size}: {open_places} of {mask.numel()} values of output {name!r} hang on "
                "a rounding of eager's own, as the order of equal scores does, and are not compared"
            )
    return lines


def _request(
    model: Ingested, bounds: Sequence[IdBound], size: int, rows: int, room: Room, number: int
) -> dict[str, torch.Tensor]:
    """One of the requests that bucket `size` is proved with; number 0 is the stored one."""
    return sample_request(
        model.inputs,
        bounds,
        model.example,
        rows,
        seed=1000 * size + number,
        users=model.users,
        room=room,
        bucket=size,
    )


def _eager(model: Ingested, request: dict[str, torch.Tensor], rows: int) -> dict[str, Array]:
    """The answer of the model itself."""
    return run_eager(model, for_eager(model.inputs, request, rows), rows)


def _columns(model: Ingested, bounds: Sequence[IdBound], rows: int) -> dict[str, Array]:
    """The largest finite size of each column of an output over a few requests of so many rows."""
    found = {spec.name: np.zeros(spec.row) for spec in model.outputs}
    for seed in range(_SCALE_REQUESTS):
        request = sample_request(
            model.inputs, bounds, model.example, rows, seed, users=model.users, bucket=rows
        )
        for name, value in _eager(model, request, rows).items():
            found[name] = np.maximum(found[name], column_scale(value))
    return found


def _largest(got: Array, want: Array) -> float:
    """The largest difference; infinite where only one of the two is a finite number, and where they
    are ids or flags that differ."""
    with np.errstate(invalid="ignore"):
        gap = np.abs(got.astype(np.float64) - want)
    same = got == want
    if want.dtype.kind != "f":
        return 0.0 if same.all() else float("inf")
    same |= np.isnan(got) & np.isnan(want)
    return float(np.max(np.where(same, 0.0, np.nan_to_num(gap, nan=np.inf)), initial=0.0))


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
    cause = (
        "the model scores a row otherwise in another number of rows, and each row has to be scored "
        "by itself"
    )
    if model.row_mask is not None:
        cause = (
            f"rows for which {model.row_mask.name!r} is false count in a bucket of this size: "
            "leave them out wherever rows are compared"
        )
    return (
        "Capture with compiler='eager' and rewrites=(): where that is right, one of the two is the "
        f"cause; else {cause}. A rounding that grows is let through by a larger rtol"
    )


def _poison(lane: Lane) -> None:
    """Fill staging with bytes that no request holds, so that a row left over would show."""
    lane.host_inputs().fill(0x7F)
