"""Refuse models whose rows are not scored each by itself.

A request is padded, cut into parts and packed with others, all of which take for granted that an
output's row is made of its own row of the inputs. Padding repeats a row, so that much of what mixes
rows (the first row, the largest one) does not show in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from recreplay.capture.division import division_of, starts_of
from recreplay.capture.eager_model import run_eager
from recreplay.capture.ingest import Ingested
from recreplay.capture.sampling import sample_request
from recreplay.capture.user_side import for_eager
from recreplay.runtime.errors import UnsupportedModelError
from recreplay.runtime.spec import IdBound, InputSpec

_ROWS, _CUT = 5, 1  # a single row is what models forget
_TRIES = 2  # rounding can turn what is next to a threshold; a model that mixes rows always does


def refuse_mixing(model: Ingested, bounds: Sequence[IdBound], rtol: float, atol: float) -> None:
    """Raise `UnsupportedModelError` where rows get other outputs alone than among others, by more
    than a replay may differ, and `CaptureError` where the model itself fails."""
    mixed = [_mixed(model, bounds, rtol, atol, seed) for seed in range(_TRIES)]
    if not all(mixed):
        return
    name, far = mixed[0] or ("", 0.0)
    users = "" if model.users else "; inputs that all rows share can be declared (user_inputs)"
    raise UnsupportedModelError(
        f"output {name!r} of a row depends on other rows of the request, or on how many there "
        f"are: the outputs of {_ROWS} rows and those of the same rows in two parts differ by "
        f"{far:.3g}; expected the same (rtol {rtol}, atol {atol}). Requests are padded, cut and "
        f"packed, so each row has to be scored by itself; compare rows outside of the model{users}"
    )


def _mixed(
    model: Ingested, bounds: Sequence[IdBound], rtol: float, atol: float, seed: int
) -> tuple[str, float] | None:
    """The first output that differs, and by how much."""
    inputs = model.inputs
    if model.users > 1:  # each row may have a user of its own
        inputs = tuple(replace(s, user=False) for s in inputs if s.kind != "index")
    request = sample_request(
        inputs, bounds, model.example, _ROWS, seed, users=model.users, bucket=_ROWS
    )
    whole = for_eager(inputs, request, _ROWS)
    together = run_eager(model, whole, _ROWS)
    parts = [
        run_eager(model, _rows_of(inputs, whole, start, stop), stop - start)
        for start, stop in ((0, _CUT), (_CUT, _ROWS))
    ]
    for name, outputs in together.items():
        value = outputs.astype(np.float64)
        alone = np.concatenate([part[name] for part in parts]).astype(np.float64)
        # Sums of other numbers of rows are rounded otherwise, by as much as their terms are large.
        scale = np.max(np.abs(value), initial=0.0, where=np.isfinite(value))
        same = np.isclose(value, alone, rtol, atol + rtol * scale, equal_nan=True)
        if not same.all():
            return name, float(np.max(np.abs(value[~same] - alone[~same])))
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
