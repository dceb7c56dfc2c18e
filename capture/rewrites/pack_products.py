"""Rewrite: products of matrices that a request makes, one for each row or head (attention, scores
of candidates, layers that an item brings along), go by the function that multiplies by packed
weights, which reads its right side as it lies.

A matrix library takes half a microsecond for each product whatever its size: 128 products of
50 x 32 by 32 x 50 take 265 us and 114 by ours, 128 of 50 x 64 by one column 221 and 22, 32 of
200 x 64 by 64 x 200 1,977 and 946 (MKL, one Zen 5 core).
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

from recreplay.capture.plain_layers import is_weight
from recreplay.capture.program import Program
from recreplay.capture.request_contractions import as_lanes
from recreplay.runtime.packed_linear import packed_linear_operator

aten = torch.ops.aten
_PRODUCTS = (aten.bmm.default, aten.matmul.default)


def pack_products(program: Program) -> None:
    """Rewrite `program` in place. For the CPU alone."""
    for node in list(program.graph.find_nodes(op="call_function", target=aten.einsum.default)):
        with program.graph.inserting_before(node):
            made = as_lanes(program, *node.args) if _is_of_requests(node) else None
        if made is not None:
            program.replace(node, made)
    for node in list(program.graph.nodes):
        if node.target in _PRODUCTS and _is_plain(node):
            with program.graph.inserting_before(node):
                _pack(program, node)
    program.sort()
    program.prune()


def _is_of_requests(node: fx.Node) -> bool:
    """Whether its factors are of float32, and no weights."""
    of_floats = all(n.meta["val"].dtype == torch.float32 for n in node.all_input_nodes)
    return of_floats and not any(is_weight(n) for n in node.all_input_nodes)


def _is_plain(node: fx.Node) -> bool:
    left, right = node.args[:2]
    values = [n.meta["val"] for n in (left, right)]  # type: ignore[union-attr]
    outer = [v.shape[:-2] for v in values]
    return (
        _is_of_requests(node)
        and not node.kwargs
        and all(v.ndim > 2 for v in values)
        and outer[0] == outer[1]
        and node.meta["val"].numel() > 0
    )


def _pack(program: Program, node: fx.Node) -> None:
    call, multiply = program.call, packed_linear_operator()
    left, right = (_matrices(program, n) for n in node.args[:2])
    lanes, rows, _ = left.meta["val"].shape
    columns = int(right.meta["val"].shape[2])
    turned = [call(aten.transpose.int, matrix, 1, 2) for matrix in (right, left)]
    moved = lanes * rows * columns if rows > 1 and columns > 1 else 0
    if sum(map(_copied, turned)) + moved < _copied(left) + _copied(right):
        result = call(multiply, *turned, None, 0, int(rows), False)
        result = call(aten.transpose.int, result, 1, 2)
    else:
        result = call(multiply, left, right, None, 0, columns, False)
    shape = list(node.meta["val"].shape)
    if len(shape) > 3:
        result = call(aten.reshape.default, result, shape)
    program.replace(node, result)


def _matrices(program: Program, node: Any) -> fx.Node:
    """`[lanes, rows, columns]` of `[..., rows, columns]`."""
    shape = node.meta["val"].shape
    if len(shape) == 3:
        return node  # type: ignore[no-any-return]
    return program.call(aten.reshape.default, node, [prod(shape[:-2]), *shape[-2:]])


def _copied(matrix: fx.Node) -> int:
    """How many values are moved to have it lie row by row."""
    value = matrix.meta["val"]
    return 0 if value.is_contiguous() else value.numel()
