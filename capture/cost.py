"""How many bytes an operator moves and how many operations it does: estimates from its shapes."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

from recreplay.capture.contraction import terms_of
from recreplay.capture.dag import Cost
from recreplay.capture.freeze import tensors_in
from recreplay.capture.plain_convolutions import CONVOLUTIONS
from recreplay.runtime.aten import (
    ATTENTION,
    BYTE_BAGS,
    GROUPED_LOOKUP,
    GRU,
    JAGGED_BAGS,
    LSTM,
    PACKED_LINEAR,
    ROW_BAGS,
    WEIGHTED_BAGS,
)

aten = torch.ops.aten
# Operators that read no more of their first argument than they give.
PICKS = (aten.index.Tensor, aten.index_select.default, aten.gather.default)


def operator_cost(node: fx.Node) -> Cost:
    """Bytes read and written, and multiply-adds counted as two operations.

    A lookup reads the rows it gathers, not its table.
    """
    out = tensors_in(node.meta["val"])
    written = sum(_nbytes(t) for t in out)
    inputs = [
        n.meta["val"] for n in node.all_input_nodes if isinstance(n.meta["val"], torch.Tensor)
    ]
    lookups = (aten.embedding.default, aten.embedding_bag.padding_idx)
    if node.target in lookups or str(node.target) in (ROW_BAGS, JAGGED_BAGS, WEIGHTED_BAGS):
        table, ids = inputs[0], inputs[1]
        gathered = prod(ids.shape) * table.shape[1]
        return Cost(gathered * table.element_size() + _nbytes(ids) + _nbytes(out[0]), gathered)
    if str(node.target) == BYTE_BAGS:
        codes, scales, ids = inputs
        gathered = prod(ids.shape) * codes.shape[1]
        read = gathered + prod(ids.shape) * scales.shape[1] * scales.element_size()
        return Cost(read + _nbytes(ids) + _nbytes(out[0]), 2 * gathered)
    if str(node.target) == GROUPED_LOOKUP:
        # Scales and offsets of rows are a few bytes beside them.
        gathered, weights, ids = node.meta["gathered"], inputs[0], inputs[1]
        return Cost(gathered * weights.element_size() + _nbytes(ids) + _nbytes(out[0]), gathered)
    read = sum(_nbytes(t) for t in inputs)
    if node.target in PICKS:
        read += written - _nbytes(inputs[0])
    return Cost(read + written, _flops(node, out))


def _flops(node: fx.Node, out: list[torch.Tensor]) -> int:
    elements = sum(prod(t.shape) for t in out)
    products = (aten.linear.default, aten.mm.default, aten.bmm.default, aten.matmul.default)
    if node.target in products or str(node.target) == PACKED_LINEAR:
        return 2 * elements * _width(node.args[0])
    added = (aten.addmm.default, aten.baddbmm.default, aten._addmm_activation.default)
    if node.target in added:
        return 2 * elements * _width(node.args[1])
    inputs = [t for n in node.all_input_nodes for t in tensors_in(n.meta["val"])]
    if node.target in CONVOLUTIONS:
        return 2 * elements * prod(node.args[1].meta["val"].shape[1:])  # type: ignore[union-attr]
    if node.target is aten.einsum.default and (found := _multiplied(*node.args)):
        return found
    if str(node.target) in (GRU, LSTM):  # as many gates as it is given, each of a whole state
        return 2 * prod(inputs[0].shape) * inputs[1].shape[-1]
    if node.target in (aten.gru.input, aten.lstm.input):  # every weight at every step
        weights = sum(prod(t.shape) for t in inputs if t.ndim == 2)
        return 2 * prod(inputs[0].shape[:2]) * weights
    if node.target is aten.scaled_dot_product_attention.default or str(node.target) == ATTENTION:
        # Each value of queries, and of the result, by all keys.
        query, key = (n.meta["val"] for n in node.args[:2])  # type: ignore[union-attr]
        keys = int(key.shape[1 if str(node.target) == ATTENTION else -2])
        return 2 * keys * (int(query.numel()) + elements)
    if node.target in PICKS:
        return elements
    return max([elements, *(prod(t.shape) for t in inputs)])


def _multiplied(equation: Any, factors: Any) -> int | None:
    """Twice how many pairs of elements two factors have to be multiplied; None of others."""
    found = terms_of(equation)
    if found is None or len(factors) != 2:
        return None
    sizes: dict[str, int] = {}
    for letters, factor in zip(found[0], factors, strict=True):
        sizes |= zip(letters, factor.meta["val"].shape, strict=True)
    return 2 * prod(sizes.values())


def _width(source: Any) -> int:
    """How many products are added up for each element that a layer of `source` gives."""
    return int(source.meta["val"].shape[-1])


def _nbytes(tensor: torch.Tensor) -> int:
    return prod(tensor.shape) * tensor.element_size()
