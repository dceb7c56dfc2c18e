"""Rewrite: scaled dot product attention by a function of ours.

A transformer of two blocks over 30 items of 64 values spends half of its time in torch's. What a
model writes as products and a softmax goes the same way.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import torch
from torch import fx

from recreplay.capture.plain_layers import is_weight
from recreplay.capture.program import Program
from recreplay.capture.request_contractions import as_matrices
from recreplay.capture.rewrites.attention_by_parts import Parts, find_parts
from recreplay.runtime.aten import ATTENTION, resolve

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def attend(program: Program, lowers: bool = False) -> None:
    """Rewrite `program` in place; products that are to read a lower type stay products. For the CPU
    alone."""
    if not lowers:
        _einsums_as_matrices(program)
        for parts in find_parts(program):
            with program.graph.inserting_before(parts.product):
                program.replace(parts.product, _attend_by_parts(program, parts))
    for node in list(program.graph.find_nodes(op="call_function", target=_ATTENTION)):
        given = dict(zip(_NAMES, node.args, strict=False)) | node.kwargs
        if _is_plain(given):
            with program.graph.inserting_before(node):
                program.replace(node, _attend(program, given, node.meta["val"]))
    program.sort()
    program.prune()


def _einsums_as_matrices(program: Program) -> None:
    """Attention is written by `einsum`, too."""
    for node in list(program.graph.find_nodes(op="call_function", target=aten.einsum.default)):
        equation, factors = node.args
        if not any(is_weight(n) for n in node.all_input_nodes):
            with program.graph.inserting_before(node):
                made = as_matrices(program, str(equation), factors)
            if made is not None:
                program.replace(node, made)
    program.prune()


def _is_plain(given: dict[str, Any]) -> bool:
    """Whether it is of floats, draws nothing, and its mask, if any, is of floats or flags."""
    values = [given[name].meta["val"] for name in _NAMES[:3]]
    mask = given.get("attn_mask")
    kinds = (torch.float32, torch.bool)
    return (
        all(v.dtype == torch.float32 and v.ndim in (3, 4) and v.numel() > 0 for v in values)
        and len({v.ndim for v in values}) == 1
        and len({tuple(v.shape[:-3]) for v in values}) == 1
        and not given.get("dropout_p", 0.0)
        and (mask is None or mask.meta["val"].dtype in kinds)
    )


def _attend(program: Program, given: dict[str, Any], replaced: torch.Tensor) -> fx.Node:
    """What lies as `replaced` does, since what follows may view it."""
    call, query = program.call, given["query"].meta["val"]
    alone = query.ndim == 3  # without heads
    sources = [_by_items(program, given[name]) for name in _NAMES[:3]]
    dim = query.shape[-1]
    mask = given.get("attn_mask")
    if mask is not None:
        if mask.meta["val"].dtype == torch.bool:
            mask = call(aten.where.Scalar, mask, 0.0, -inf)
        mask = _of_scores(program, mask, sources[0], sources[1], alone)
    scale = given.get("scale")
    scale = 1 / sqrt(dim) if scale is None else scale
    causal = bool(given.get("is_causal", False))
    first = not alone and replaced.permute(2, 0, 1, 3).is_contiguous()
    found = call(resolve(ATTENTION), *sources, mask, causal, scale, first, False, False)
    found = _by_heads(program, found, first, alone)
    if found.meta["val"].stride() == replaced.stride() or first or alone:
        return found
    return call(aten.clone.default, found, memory_format=torch.contiguous_format)


def _attend_by_parts(program: Program, parts: Parts) -> fx.Node:
    call, alone = program.call, parts.query.meta["val"].ndim == 3
    key = call(aten.transpose.int, parts.keys, -2, -1)
    sources = [_by_items(program, node) for node in (parts.query, key, parts.value)]
    mask = parts.mask
    if mask is not None:
        mask = _of_scores(program, mask, sources[0], sources[1], alone)
    first = alone and _is_turned(parts.product, 0, 1)
    options = (False, parts.scale, first, parts.replaces, True)
    found = call(resolve(ATTENTION), *sources, mask, *options)
    found = _by_heads(program, found, first, alone)
    if first or alone or _is_turned(parts.product, 1, 2):
        return found
    return call(aten.clone.default, found, memory_format=torch.contiguous_format)


def _is_turned(node: fx.Node, *dims: int) -> bool:
    """Whether all that reads it reads it with these two dimensions exchanged."""
    order = list(range(node.meta["val"].ndim))
    exchanged = _exchanged(order, *dims)
    for user in node.users:
        args: Any = user.args
        if user.target is aten.permute.default:
            read = [order[d] for d in args[1]]
        elif user.target is aten.transpose.int:
            read = _exchanged(order, *args[1:])
        else:
            return False
        if read != exchanged:
            return False
    return True


def _exchanged(order: list[int], one: int, other: int) -> list[int]:
    found = list(order)
    found[one], found[other] = found[other], found[one]
    return found


def _by_items(program: Program, node: fx.Node) -> fx.Node:
    """`[B, items, heads, values]` of `[B, heads, items, values]` or `[B, items, values]`."""
    if node.meta["val"].ndim == 3:
        return program.call(aten.unsqueeze.default, node, 2)
    return program.call(aten.transpose.int, node, 1, 2)


def _by_heads(program: Program, found: fx.Node, first: bool, alone: bool) -> fx.Node:
    """The other way round, of what has its queries first or not."""
    if alone:
        found = program.call(aten.squeeze.dims, found, [2])
        return program.call(aten.transpose.int, found, 0, 1) if first else found
    return program.call(aten.permute.default, found, [1, 2, 0, 3] if first else [0, 2, 1, 3])


def _of_scores(
    program: Program, mask: fx.Node, query: fx.Node, key: fx.Node, alone: bool
) -> fx.Node:
    """A mask as `[B, heads, queries, keys]`."""
    batch, queries, heads, _ = query.meta["val"].shape
    if alone and mask.meta["val"].ndim == 3:
        mask = program.call(aten.unsqueeze.default, mask, 1)
    return program.call(aten.expand.default, mask, [batch, heads, queries, _items(key)])


def _items(source: fx.Node) -> int:
    return int(source.meta["val"].shape[1])
