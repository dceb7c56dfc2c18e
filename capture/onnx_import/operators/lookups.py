"""Ours: lookups that the passes made out of several nodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recreplay.capture.onnx_import.call import Call, Operator


def _bag(call: Call) -> torch.Tensor:
    """Bags of one length: table `[rows, d]`, ids `[N]`, where the bags end, weights of the ids.

    The loop that this was made of runs over `range(0, limit, length)`: all ids, if `limit` is
    their number.
    """
    table, ids = call.tensor(0), call.tensor(1).reshape(-1)
    length = call.required("length")
    limit = call.ints(2, "where its bags begin")[0]
    if limit != ids.shape[0]:
        raise call.refuse(f"its bags cover {limit} of {ids.shape[0]} ids; expected all of them")
    weights = call.maybe(3)
    return F.embedding_bag(
        ids.reshape(-1, length),
        table,
        mode=call.required("mode"),
        per_sample_weights=None if weights is None else weights.reshape(-1, length),
    )


def _unrow(call: Call) -> torch.Tensor:
    """The rows of a table that is stored as a matrix, in the shape that they had."""
    rows = call.tensor(0)
    row = call.required("row")
    return rows.squeeze(-1) if not row else rows.reshape([*rows.shape[:-1], *row])


LOOKUPS: dict[str, Operator] = {"recreplay::Bag": _bag, "recreplay::Unrow": _unrow}
