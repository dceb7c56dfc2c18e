"""Attention that a model writes as two products with a softmax between them.

Layers of torch that also give their weights do (`nn.MultiheadAttention` as it comes), as do most
models of rankers' own and all that come by ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from recreplay.capture.program import Program

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_ADDED_TO = aten.baddbmm.default
_SOFTMAXES = (aten.softmax.int, aten._softmax.default)
_SCALES = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
_FILLS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
_STEPS = (*_SCALES, *_FILLS, aten.add.Tensor, aten.where.self)
_KEEP = math.nan  # in a mask: the score stays


@dataclass(frozen=True)
class Parts:
    """`product` is `softmax(mask(scale * query @ keys)) @ value`.

    `query` `[..., M, dim]`, `keys` `[..., dim, N]`, `value` `[..., N, width]`, all with the same
    dimensions in front. Of `mask`, which is broadcast to the scores, elements are added to them, or
    where `replaces` is true put in their place unless they are no number. What the model puts there
    that is none is infinite in a mask: a softmax makes the same of both.
    """

    product: fx.Node
    query: fx.Node
    keys: fx.Node
    value: fx.Node
    scale: float
    mask: fx.Node | None
    replaces: bool


def find_parts(program: Program) -> Iterator[Parts]:
    """In the order of the program, to which the masks are added; what one is replaced by is what
    the next one reads."""
    for node in list(program.graph.nodes):
        if node.target in _PRODUCTS and not node.kwargs:
            with program.graph.inserting_before(node):
                parts = _parts(program, node)
            if parts is not None:
                yield parts


def _parts(program: Program, node: fx.Node) -> Parts | None:
    weights: Any = node.args[0]
    value: Any = node.args[1]
    if not _is_alone(weights) or weights.target not in _SOFTMAXES:
        return None
    scores: Any
    scores, dim, *types = weights.args
    last = scores.meta["val"].ndim - 1
    if dim not in (-1, last) or any(types) or any(weights.kwargs.values()):
        return None
    masks: list[tuple[bool, fx.Node]] = []  # from the last to the first
    scale = 1.0
    while scores.target not in (*_PRODUCTS, _ADDED_TO):
        step = _step(program, scores)
        if step is None or not _is_alone(scores):
            return None
        scores, factor, mask, replaces = step
        if mask is not None and scale != 1:
            return None  # what is added is scaled
        scale *= factor
        if mask is not None:
            masks.append((replaces, mask))
    *added, query, keys = scores.args
    if added and scale != 1:
        return None
    masks += [(False, mask) for mask in added]
    shapes = [n.meta["val"].shape for n in (query, keys, value)]
    dtypes = {n.meta["val"].dtype for n in (query, keys, value)}
    if (
        not _is_alone(scores)
        or scores.kwargs
        or dtypes != {torch.float32}
        or len(shapes[0]) not in (3, 4)
        or len({tuple(s[:-2]) for s in shapes}) != 1
        or any(0 in s for s in shapes)
    ):
        return None
    kinds = {replaces for replaces, _ in masks}
    if len(kinds) > 1 or (True in kinds and len(masks) > 1):
        return None
    mask = None
    for _, one in masks:
        mask = one if mask is None else program.call(aten.add.Tensor, mask, one)
    return Parts(node, query, keys, value, scale, mask, True in kinds)


def _is_alone(node: Any) -> bool:
    return isinstance(node, fx.Node) and len(node.users) == 1


def _step(program: Program, node: fx.Node) -> tuple[fx.Node, float, fx.Node | None, bool] | None:
    """One step from the product to the softmax: what it reads, what it multiplies that with, and
    the mask that it applies and whether that replaces scores."""
    if node.kwargs:
        return None
    target = node.target
    args: Any = node.args
    if target in _SCALES:
        for scores, other in (args, args[::-1])[: 2 if target is aten.mul.Tensor else 1]:
            factor = _number(program, other)
            if factor and isinstance(scores, fx.Node) and _same_shape(scores, node):
                inverse = target in (aten.div.Tensor, aten.div.Scalar)
                return scores, 1 / factor if inverse else factor, None, False
        return None
    if target is aten.add.Tensor:
        for scores, mask in (args, args[::-1]):
            if _is_scores(scores, node) and _is_mask(mask, node):
                return scores, 1.0, mask, False
        return None
    if target in _FILLS:
        scores, where, filled = args
        if not _is_scores(scores, node) or not _is_small(where, node):
            return None
        number = _number(program, filled)
        if number is None:
            return None
        number = math.inf if math.isnan(number) else number
        mask = program.call(aten.where.Scalar, where, number, _KEEP)
        return scores, 1.0, mask, True
    if target is aten.where.self:
        where, *others = args
        if not _is_small(where, node):
            return None
        for at, (scores, filled) in enumerate((others, others[::-1])):
            if not _is_scores(scores, node) or not _is_mask(filled, node):
                continue
            keeps = program.constant(torch.tensor(_KEEP))
            filled = program.call(aten.nan_to_num.default, filled, math.inf, math.inf, -math.inf)
            pair = (keeps, filled) if at == 0 else (filled, keeps)
            return scores, 1.0, program.call(aten.where.self, where, *pair), True
    return None


def _is_scores(node: Any, made: fx.Node) -> bool:
    """Whether `made` is this with a mask, and it leads to a product."""
    if not isinstance(node, fx.Node) or not _same_shape(node, made):
        return False
    while isinstance(node, fx.Node) and node.target not in (*_PRODUCTS, _ADDED_TO):
        if node.target not in _STEPS:
            return False
        node = next((n for n in node.all_input_nodes if _same_shape(n, made)), None)
    return node is not None


def _is_mask(node: Any, made: fx.Node) -> bool:
    return _is_small(node, made) and node.meta["val"].dtype == torch.float32


def _is_small(node: Any, made: fx.Node) -> bool:
    """Whether it is broadcast to what is `made`, or is as large."""
    if not isinstance(node, fx.Node):
        return False
    shape, whole = node.meta["val"].shape, made.meta["val"].shape
    return len(shape) <= len(whole) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(whole), strict=False)
    )


def _same_shape(node: fx.Node, other: fx.Node) -> bool:
    return bool(node.meta["val"].shape == other.meta["val"].shape)


def _number(program: Program, value: Any) -> float | None:
    """A number, or a constant of one element."""
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, fx.Node) and value.meta["val"].numel() == 1:
        name = str(value.target)
        if name.startswith("const:"):
            return float(program.constants[name.removeprefix("const:")])
    return None
