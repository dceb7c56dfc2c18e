"""Refuse models whose rows are not scored each by itself, or not without what pads them.

A request is padded, cut into parts and packed with others, all of which take for granted that an
output's row is made of its own row of the inputs. Padding repeats a row, so that much of what mixes
rows (the first row, the largest one) does not show in it.

Models with a row mask may compare rows. Their requests are padded alone, so that nothing may change
with rows for which the mask is false.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from recreplay.capture.decisions import ROUNDING, decided
from recreplay.capture.division import division_of, starts_of
from recreplay.capture.eager_model import run_eager
from recreplay.capture.ingest import Ingested
from recreplay.capture.sampling import sample_request
from recreplay.capture.user_side import for_eager
from recreplay.runtime.closeness import column_scale, is_close
from recreplay.runtime.errors import UnsupportedModelError
from recreplay.runtime.spec import IdBound, InputSpec

_ROWS, _CUT = 5, 1  # a single row is what models forget
_PADDING = 3  # rows
_TRIES = 2  # a model that mixes rows always does
# Fewer rows than a model may pick: what it lacks is padding then, which is as the least of them in
# half of the tries.
_FEW, _FEW_TRIES = 2, 8


def refuse_mixing(model: Ingested, bounds: Sequence[IdBound], rtol: float, atol: float) -> None:
    """Raise `UnsupportedModelError` where rows get other outputs alone than among others, by more
    than a replay may differ, and `CaptureError` where the model itself fails."""
    few = [(_FEW, _FEW_TRIES)] if model.row_mask is not None else []
    for rows, tries in [(_ROWS, _TRIES), *few]:
        found = (_mixed(model, bounds, rtol, atol, rows, seed) for seed in range(tries))
        mixed = [one for one in found if one is not None]
        if len(mixed) >= _TRIES:
            name, far = mixed[0]
            raise _refusal(model, rows, name, far, rtol, atol)


def _refusal(
    model: Ingested, rows: int, name: str, far: float, rtol: float, atol: float
) -> UnsupportedModelError:
    if model.row_mask is not None:
        return UnsupportedModelError(
            f"output {name!r} of a row depends on rows that are padding: the outputs of {rows} "
            f"rows and those of the same rows before {_PADDING} others, for which "
            f"{model.row_mask.name!r} is false, differ by {far:.3g}; expected the same (rtol "
            f"{rtol}, atol {atol}). Leave such rows out wherever rows are compared, as by "
            f"scores.masked_fill(~{model.row_mask.name}, float('-inf')) before a softmax"
        )
    users = "" if model.users else "; inputs that all rows share can be declared (user_inputs)"
    return UnsupportedModelError(
        f"output {name!r} of a row depends on other rows of the request, or on how many there "
        f"are: the outputs of {rows} rows and those of the same rows in two parts differ by "
        f"{far:.3g}; expected the same (rtol {rtol}, atol {atol}). Requests are padded, cut and "
        f"packed, so each row has to be scored by itself; compare rows outside of the model, or "
        f"have it take a row mask (row_mask){users}"
    )


def _mixed(
    model: Ingested, bounds: Sequence[IdBound], rtol: float, atol: float, rows: int, seed: int
) -> tuple[str, float] | None:
    """The first output that differs, and by how much."""
    inputs = model.inputs
    if model.users > 1:  # each row may have a user of its own
        inputs = tuple(replace(s, user=False) for s in inputs if s.kind != "index")
    request = sample_request(
        inputs, bounds, model.example, rows, seed, users=model.users, bucket=rows
    )
    whole = for_eager(inputs, request, rows)
    together = run_eager(model, whole, rows)
    if model.row_mask is not None:
        other = run_eager(model, _padded(inputs, whole), rows + _PADDING)
        others = {name: outputs[:rows] for name, outputs in other.items()}
    else:
        parts = [
            run_eager(model, _rows_of(inputs, whole, start, stop), stop - start)
            for start, stop in ((0, _CUT), (_CUT, rows))
        ]
        others = {name: np.concatenate([part[name] for part in parts]) for name in together}
    # Sums of other numbers of rows are rounded otherwise, by as much as their terms are large.
    scales = {n: float(np.max(column_scale(v), initial=0.0)) for n, v in together.items()}
    for name, value in together.items():
        same = is_close(others[name], value, rtol, atol, scales[name])
        if not same.all():
            same |= ~decided(model, whole, together, rows, ROUNDING, rtol, atol, scales)[name]
        if not same.all():
            gap = value[~same].astype(np.float64) - others[name][~same]
            return name, float(np.max(np.abs(gap)))
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
            value, members, starts = _division(inputs, spec, whole)
            lengths = starts.diff()[start:stop]
            part[spec.name] = division_of(spec, lengths).to(value.dtype)
            for name in members:
                part[name] = whole[name][starts[start] : starts[stop]]
    return part


def _padded(
    inputs: Sequence[InputSpec], whole: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A request as the model takes it with rows behind it that are padding: row 0 again, without
    jagged values."""
    padded = dict(whole)
    for spec in inputs:
        if spec.kind == "rows":
            value = whole[spec.name]
            padded[spec.name] = torch.cat([value, value[:1].expand(_PADDING, *value.shape[1:])])
        elif spec.kind == "mask":
            padded[spec.name] = torch.cat([whole[spec.name], torch.zeros(_PADDING).bool()])
        elif spec.kind not in ("values", "index"):
            value, _, starts = _division(inputs, spec, whole)
            lengths = torch.cat([starts.diff(), starts.new_zeros(_PADDING)])
            padded[spec.name] = division_of(spec, lengths).to(value.dtype)
    return padded


def _division(
    inputs: Sequence[InputSpec], spec: InputSpec, whole: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """What divides jagged values, the names of these, and where the rows of each begin."""
    members = [s.name for s in inputs if s.along == spec.name]
    value = whole[spec.name]
    return value, members, starts_of(spec, value, len(whole[members[0]]))
