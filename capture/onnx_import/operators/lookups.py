"""Ours: lookups that the passes made out of several nodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recreplay.capture.onnx_import.call import Call, Operator
from recreplay.capture.onnx_import.operators.indexing import wrapped


def _bag(call: Call) -> torch.Tensor:
    """Bags of one length: table `[rows, d]`, ids `[N]`, where the bags end, weights of the ids.

    The loop that this was made of runs over `range(0, limit, length)`: all ids, if `limit` is
    their number.
    """
    ids, weights = _ids_and_weights(call)
    length = call.required("length")
    limit = call.ints(2, "where its bags begin")[0]
    if limit != ids.shape[0]:
        raise call.refuse(f"its bags cover {limit} of {ids.shape[0]} ids; expected all of them")
    return F.embedding_bag(
        ids.reshape(-1, length),
        call.tensor(0),
        mode=call.required("mode"),
        per_sample_weights=None if weights is None else weights.reshape(-1, length),
    )


def _jagged_bag(call: Call) -> torch.Tensor:
    """Bags of any length: table `[rows, d]`, ids `[N]`, offsets `[bags + 1]` or, without the number
    of ids at their end, `[bags]`, weights of the ids."""
    ids, weights = _ids_and_weights(call)
    return F.embedding_bag(
        ids,
        call.tensor(0),
        call.tensor(2),
        mode=call.required("mode"),
        per_sample_weights=weights,
        include_last_offset=call.required("with_end"),
    )


def _ids_and_weights(call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
    ids, weights = call.tensor(1), call.maybe(3)
    for what, value in (("ids", ids), ("weights", weights)):
        if value is not None and (value.ndim != 1 or value.shape[0] != ids.shape[0]):
            raise call.refuse(f"its {what} have shape {tuple(value.shape)}; expected one per id")
    if not call.is_given(1):
        ids = wrapped(call, 1, call.tensor(0).shape[0])
    return ids, weights


def _unrow(call: Call) -> torch.Tensor:
    """The rows of a table that is stored as a matrix, in the shape that they had."""
    rows = call.tensor(0)
    row = call.required("row")
    return rows.squeeze(-1) if not row else rows.reshape([*rows.shape[:-1], *row])


LOOKUPS: dict[str, Operator] = {
    "recreplay::Bag": _bag,
    "recreplay::JaggedBag": _jagged_bag,
    "recreplay::Unrow": _unrow,
}
