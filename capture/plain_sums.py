"""Sums over elements that were broadcast and multiplied, as the products that they are.

Models write a layer for each field, item or pair so, `(x.unsqueeze(2) * weight).sum(-1)`: ComiRec
does, and the outer products of PNN. torch holds all elements for it, as many as are multiplied.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

from recreplay.capture.contraction import LETTERS, shaped
from recreplay.capture.plain_contractions import as_contraction
from recreplay.capture.plain_layers import is_weight
from recreplay.capture.program import Program

aten = torch.ops.aten
_FEW = 8  # columns, which loops that others are fused with multiply as fast


def as_product(program: Program, target: Any, args: Any) -> fx.Node | None:
    """A sum over what a request and a weight multiply, as a product; None for anything else."""
    if target is not aten.sum.dim_IntList or args[0].target is not aten.mul.Tensor:
        return None
    elements, dims, keepdim = (*args, False)[:3]
    pair = sorted((a for a in elements.args if isinstance(a, fx.Node)), key=is_weight)
    if [is_weight(node) for node in pair] != [False, True] or elements.kwargs:
        return None
    if len({node.meta["val"].dtype for node in (*pair, elements)}) > 1:
        return None
    shape = list(elements.meta["val"].shape)
    summed = {dim % len(shape) for dim in dims or range(len(shape))}
    rows, weight = (_own(node, shape) for node in pair)
    weight = [dim for dim in weight if shape[dim] > 1]  # of one are the rows', if they are either's
    columns = [dim for dim in weight if dim not in rows]
    if not summed <= {*rows} & {*weight} or {*rows, *weight} != {*range(len(shape))}:
        return None
    if len(shape) > len(LETTERS) or prod(shape[dim] for dim in columns) < _FEW:
        return None
    left = [dim for dim in range(len(shape)) if dim not in summed]
    spelt = ["".join(LETTERS[dim] for dim in each) for each in (rows, weight, left)]
    factors = [
        shaped(program, node, [shape[dim] for dim in own])
        for node, own in zip(pair, (rows, weight), strict=True)
    ]
    equation = f"{spelt[0]},{spelt[1]}->{spelt[2]}"
    made = as_contraction(program, aten.einsum.default, (equation, factors))
    if made is None or not keepdim:
        return made
    kept = [1 if dim in summed else size for dim, size in enumerate(shape)]
    return shaped(program, made, kept)


def _own(node: fx.Node, shape: list[int]) -> list[int]:
    """The dimensions in which a factor is not repeated."""
    own = node.meta["val"].shape
    first = len(shape) - len(own)
    return [first + dim for dim, size in enumerate(own) if size == shape[first + dim]]
