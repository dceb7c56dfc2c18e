"""Refuse models whose rows are not scored each by itself.

A request is padded, cut into parts and packed with others, all of which take for granted that an
output's row is made of its own row of the inputs. Padding repeats a row, so that much of what mixes
rows (the first row, the largest one) does not show in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from recreplay.capture.division import division_of, starts_of
from recreplay.capture.ingest import Ingested
from recreplay.capture.sampling import sample_request
from recreplay.capture.user_side import for_eager
from recreplay.runtime.errors import CaptureError, UnsupportedModelError
from recreplay.runtime.spec import InputSpec

Array = np.ndarray[Any, Any]

_ROWS, _CUT = 5, 1  # a single row is what models forget
_TRIES = 2  # rounding can turn what is next to a threshold; a model that mixes rows always does
_FAR = 0.01  # of a value, and a tenth of it of the largest one: sums of other sizes are rounded so


def refuse_mixing(model: Ingested) -> None:
    """Raise UnsupportedModelError where rows get other outputs alone than among others, and
    CaptureError where the model itself fails. Requests are made of values of the example."""
    mixed = [_mixed(model, seed) for seed in range(_TRIES)]
    name, far = mixed[0] or ("", 0.0)
    if all(mixed):
        users = "" if model.users else "; inputs that all rows share can be declared (user_inputs)"
        raise UnsupportedModelError(
            f"output {name!r} of a row depends on other rows of the request, or on how many there "
            f"are: the outputs of {_ROWS} rows and those of the same rows in two parts differ by "
            f"{far:.3g}. Requests are padded, cut and packed, so each row has to be scored by "
            f"itself; compare rows outside of the model{users}"
        )


def _mixed(model: Ingested, seed: int) -> tuple[str, float] | None:
    """The first output that differs, and by how much."""
    request = sample_request(
        model.inputs, (), model.example, _ROWS, seed, users=model.users, bucket=_ROWS
    )
    whole = for_eager(model.inputs, request, _ROWS)
    together = _run(model, whole, _ROWS)
    parts = [
        _run(model, _rows_of(model.inputs, whole, start, stop), stop - start)
        for start, stop in ((0, _CUT), (_CUT, _ROWS))
    ]
    for name, value in together.items():
        alone = np.concatenate([part[name] for part in parts])
        with np.errstate(invalid="ignore"):
            gap = np.nan_to_num(np.abs(value - alone), nan=0.0, posinf=0.0)
        scale = np.max(np.abs(value), initial=0.0, where=np.isfinite(value))
        far = gap > _FAR * np.abs(alone) + 0.1 * _FAR * scale
        if far.any() or (np.isfinite(value) != np.isfinite(alone)).any():
            return name, float(gap.max(initial=0.0))
    return None


def _rows_of(
    inputs: Sequence[InputSpec], whole: Mapping[str, torch.Tensor], start: int, stop: int
) -> dict[str, torch.Tensor]:
    """Some rows of a request as the model takes it."""
    part = {}
    for spec in inputs:
        if spec.kind == "rows":
            part[spec.name] = whole[spec.name][start:stop]
        elif spec.kind not in ("values", "index"):
            members = [s.name for s in inputs if s.along == spec.name]
            value = whole[spec.name]
            starts = starts_of(spec, value, len(whole[members[0]]))
            lengths = starts.diff()[start:stop]
            part[spec.name] = division_of(spec, lengths).to(value.dtype)
            for name in members:
                part[name] = whole[name][starts[start] : starts[stop]]
    return part


def _run(model: Ingested, inputs: Mapping[str, torch.Tensor], rows: int) -> dict[str, Array]:
    device = next(iter(model.example.values())).device
    names = [spec.name for spec in model.inputs if spec.name in inputs]
    count = f"{rows} row{'s'[: rows != 1]}"
    try:
        outputs = model.eager({name: inputs[name].to(device) for name in names})
    except Exception as error:
        raise CaptureError(
            f"the model itself fails on a request of {count} made of its example inputs: "
            f"{type(error).__name__}: {error}; it has to take any number of rows, one too, and any "
            "values of the example's columns beside each other"
        ) from error
    for spec in model.outputs:
        got = tuple(outputs[spec.name].shape) if spec.name in outputs else None
        if got != (rows, *spec.row):
            raise UnsupportedModelError(
                f"output {spec.name!r} has shape {got} for {count}; expected "
                f"{(rows, *spec.row)}, one row per row of the inputs"
            )
    return {k: v.detach().cpu().numpy().astype(np.float64) for k, v in outputs.items()}
