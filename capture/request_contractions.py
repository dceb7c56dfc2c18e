"""Products of two things that a request makes (attention, scores of candidates), written as
`einsum`, as batched ones.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

from recreplay.capture.contraction import Contraction, laid, permuted, shaped, terms_of
from recreplay.capture.program import Program

aten = torch.ops.aten


def as_lanes(program: Program, equation: str, factors: Any) -> fx.Node | None:
    """The result of an `einsum` of two things that a request makes, as a batched product; None for
    any other."""
    product = _product_by_each(equation, factors)
    if product is None or not product.summed or not any(product.alone):
        return None
    each, summed, (rows, columns) = product.each, product.summed, product.alone
    sizes = product.sizes()
    lanes, count, width, wide = (prod(sizes[c] for c in of) for of in (each, rows, summed, columns))
    left = permuted(program, product.rows, product.of_rows, each + rows + summed)
    right = permuted(program, product.weight, product.of_weight, each + summed + columns)
    left = shaped(program, left, [lanes, count, width])
    right = shaped(program, right, [lanes, width, wide])
    made = program.call(aten.bmm.default, left, right)
    return laid(program, made, each + rows + columns, product)


def as_matrices(program: Program, equation: str, factors: Any) -> fx.Node | None:
    """The result of an `einsum` that multiplies one matrix by one for each of what both have, as
    `matmul` of views; None for any other."""
    product = _product_by_each(equation, factors)
    if product is None:
        return None
    each, summed, (rows, columns) = product.each, product.summed, product.alone
    if [len(rows), len(columns), len(summed)] != [1, 1, 1]:
        return None
    left = permuted(program, product.rows, product.of_rows, each + rows + summed)
    right = permuted(program, product.weight, product.of_weight, each + summed + columns)
    made = program.call(aten.matmul.default, left, right)
    return permuted(program, made, each + rows + columns, product.result)


def _product_by_each(equation: str, factors: Any) -> Contraction | None:
    """An `einsum` of two factors that multiplies for each of what both have; None for any other."""
    found = terms_of(equation)
    if found is None or len(factors) != 2:
        return None
    (of_left, of_right), result = found
    product = Contraction(factors[0], factors[1], of_left, of_right, result)
    return product if product.each and product.is_spelt() else None
