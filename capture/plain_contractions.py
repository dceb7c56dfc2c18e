"""Products of what a request makes and a weight of several matrices (experts, fields, domains), as
the operators that rewrites take: one linear layer, or a batched product over the weight as it lies.

Models write them as `einsum`, or as a `matmul` that broadcasts, for which torch repeats the weight
for every row of the batch. What multiplies and adds no more than elements of one place (an outer
product, the dot products of two lists of vectors) becomes loops, which others are fused with: as
products of one column, 128 of 328 numbers by one take 73 us, and next to nothing so.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import fx

from recreplay.capture.contraction import LETTERS, Contraction, laid, permuted, shaped, terms_of
from recreplay.capture.fold_weights import is_table, laid_out, whole
from recreplay.capture.plain_layers import is_weight, turned_of
from recreplay.capture.program import Program

aten = torch.ops.aten
_MATRICES = (aten.matmul.default, aten.bmm.default, aten.mm.default)


def as_contraction(program: Program, target: Any, args: Any) -> fx.Node | None:
    """The result of a product with a weight, or of more than two factors; None for anything
    else."""
    if target is aten.einsum.default and len(args[1]) > 2:
        return _in_pairs(program, *args)
    if target in _MATRICES and _is_outer(*args):
        return program.call(aten.mul.Tensor, *args)
    found = _product(program, target, args)
    if found is not None and target is aten.einsum.default:
        elementwise = _elementwise(program, found)
        if elementwise is not None:
            return elementwise
    found = None if found is None or not _is_plain(found) else _once(program, found)
    if found is None or not found.alone[1]:
        return None
    joined = _joined(program, found)
    if joined is None:
        return None
    made = _multiply(program, joined)
    if made is None:
        return None
    product, letters = made
    return laid(program, product, letters.replace(joined.each, found.each), found)


def _is_outer(left: fx.Node, right: fx.Node) -> bool:
    """Whether these matrices are columns by rows."""
    values = left.meta["val"], right.meta["val"]
    return all(v.ndim > 1 for v in values) and values[0].shape[-1] == 1


def _elementwise(program: Program, product: Contraction) -> fx.Node | None:
    """The product of two tensors along the same dimensions, or without a sum; None of others."""
    if not product.is_spelt():
        return None
    if product.summed and (any(product.alone) or not _adds_itself(product)):
        return None
    sizes, order = product.sizes(), product.result + product.summed
    factors = []
    for node, letters in ((product.rows, product.of_rows), (product.weight, product.of_weight)):
        own = permuted(program, node, letters, "".join(c for c in order if c in letters))
        factors.append(shaped(program, own, [sizes[c] if c in letters else 1 for c in order]))
    made = program.call(aten.mul.Tensor, *factors)
    if not product.summed:
        return made
    return program.call(aten.sum.dim_IntList, made, list(range(len(product.result), len(order))))


def _adds_itself(product: Contraction) -> bool:
    """Whether a sum of elements is of their own type, and rounded no more often than a product."""
    types = {n.meta["val"].dtype for n in (product.rows, product.weight)}
    return types in ({torch.float32}, {torch.float64})


def _in_pairs(program: Program, equation: str, factors: Any) -> fx.Node | None:
    """The first two, then their product and the rest, as torch goes too."""
    found = terms_of(equation)
    if found is None:
        return None
    (first, second, *others), result = found
    left = {*result, *"".join(others)}
    both = "".join(c for c in dict.fromkeys(first + second) if c in left)
    product = _einsum(program, f"{first},{second}->{both}", factors[:2])
    return _einsum(program, f"{','.join([both, *others])}->{result}", [product, *factors[2:]])


def _einsum(program: Program, equation: str, factors: Any) -> fx.Node:
    made = as_contraction(program, aten.einsum.default, (equation, factors))
    return made or program.call(aten.einsum.default, equation, factors)


def _product(program: Program, target: Any, args: Any) -> Contraction | None:
    if target is aten.einsum.default:
        found, factors = terms_of(str(args[0])), args[1]
        if found is None or len(factors) != 2:
            return None
        pairs = list(zip(factors, found[0], strict=True))
        if is_weight(factors[0]):
            pairs.reverse()
        (rows, of_rows), (weight, of_weight) = pairs
        return Contraction(rows, weight, of_rows, of_weight, found[1])
    if target is aten.tensordot.default:
        return _tensordot(*args)
    if target is not aten.matmul.default:
        return None
    rows, weight = args
    dims = rows.meta["val"].ndim
    if weight.meta["val"].ndim != 3 or dims < 2:
        return None
    outer = "abcdfgh"[: max(dims - 3, 0)]
    if dims > 2 and rows.meta["val"].shape[-3] == 1 < weight.meta["val"].shape[0]:
        rows = program.call(aten.squeeze.dims, rows, [-3])
        return Contraction(rows, weight, f"{outer}mk", "ekn", f"{outer}emn")
    each = "e" if dims > 2 else ""
    return Contraction(rows, weight, f"{outer}{each}mk", "ekn", f"{outer}emn")


def _tensordot(
    left: fx.Node, right: fx.Node, of_left: list[int], of_right: list[int]
) -> Contraction | None:
    dims = left.meta["val"].ndim, right.meta["val"].ndim
    if len(of_left) != 1 or sum(dims) > len(LETTERS):
        return None
    letters = list(LETTERS[: dims[0]]), list(LETTERS[dims[0] : sum(dims)])
    letters[0][of_left[0]] = letters[1][of_right[0]] = "z"
    terms = "".join(letters[0]), "".join(letters[1])
    result = "".join(terms).replace("z", "")
    if is_weight(left):
        return Contraction(right, left, terms[1], terms[0], result)
    return Contraction(left, right, *terms, result)


def _is_plain(product: Contraction) -> bool:
    """Whether one of the two is a weight."""
    return (
        is_weight(product.weight)
        and not is_weight(product.rows)
        and product.rows.meta["val"].is_floating_point()
        and product.is_spelt()
    )


def _once(program: Program, product: Contraction) -> Contraction | None:
    """With a weight that is repeated, for each row of the batch as a rule, as it is without; None
    where that is more than a dimension of the rows."""
    weight, value = product.weight, product.weight.meta["val"]
    given = zip(product.of_weight, value.shape, value.stride(), strict=True)
    again = {c for c, size, stride in given if size > 1 and not stride}
    if not again:
        return product
    if weight.target is not aten.expand.default or not again <= {*product.of_rows} & {
        *product.result
    }:
        return None
    sizes = product.sizes()
    letters = "".join(c for c in product.of_weight if c not in again)
    shape = [sizes[c] for c in letters]
    weight = weight.all_input_nodes[0]
    while weight.target is aten.unsqueeze.default and list(weight.meta["val"].shape) != shape:
        weight = weight.all_input_nodes[0]
    return replace(product, weight=shaped(program, weight, shape), of_weight=letters)


def _joined(program: Program, product: Contraction) -> Contraction | None:
    """With one dimension that is summed, and at most one that there is a product for: several are
    one where they lie side by side in the weight. None where they do not."""
    for letters in (product.summed, product.each):
        if len(letters) > 1 and letters not in product.of_weight:
            return None
    if not product.summed:
        return None
    for letters in (product.summed, product.each):
        if len(letters) > 1:
            sizes = {**product.sizes(), letters[0]: prod(product.sizes()[c] for c in letters)}
            apart = "".join(c for c in product.of_rows if c not in letters)
            order = product.of_weight.replace(letters, letters[0])
            rows = permuted(program, product.rows, product.of_rows, apart + letters)
            weight = whole(program, product.weight)
            product = replace(
                product,
                rows=shaped(program, rows, [sizes[c] for c in apart + letters[0]]),
                of_rows=apart + letters[0],
                weight=_matrix(program, weight, [sizes[c] for c in order]),
                of_weight=order,
            )
    return product


def _multiply(program: Program, product: Contraction) -> tuple[fx.Node, str] | None:
    """The product, and the letters of its dimensions, of which some may be one dimension."""
    call, sizes = program.call, product.sizes()
    each, summed, (rows, columns) = product.each, product.summed, product.alone
    weight, order = whole(program, product.weight), product.of_weight
    if each and order[0] != each and columns in order.replace(each, ""):
        weight, order = _turned(program, weight, order, each + columns + summed)
    source = permuted(program, product.rows, product.of_rows, each + rows + summed)
    count, width = prod(sizes[c] for c in rows), sizes[summed]
    wide = prod(sizes[c] for c in columns)
    if not each and summed in (order[0], order[-1]):
        turned = order[0] == summed and len(order) > 1
        matrix = _matrix(program, weight, [width, wide] if turned else [wide, width])
        layer = turned_of(program, matrix) if turned else matrix
        return call(aten.linear.default, source, layer), rows + columns
    if each and order[0] == each and summed in (order[1], order[-1]):
        source = shaped(program, source, [sizes[each], count, width])
        if order[1] == summed:
            weight = shaped(program, weight, [sizes[each], width, wide])
        else:
            weight = shaped(program, weight, [sizes[each], wide, width])
            weight = call(aten.transpose.int, weight, 1, 2)
        return call(aten.bmm.default, source, weight), each + rows + columns
    if not each and len(order) == 3:  # the same rows by several matrices
        source = shaped(program, source, [1, count, width])
        source = call(aten.expand.default, source, [sizes[order[0]], count, width])
        return call(aten.bmm.default, source, weight), order[0] + rows + order[2]
    return None


def _turned(program: Program, weight: fx.Node, letters: str, order: str) -> tuple[fx.Node, str]:
    """A weight with its dimensions in another order, and that order; as it is if it cannot be made
    so, and tables."""
    if is_table(weight):
        return weight, letters
    made = laid_out(program, permuted(program, weight, letters, order))
    return (weight, letters) if made is None else (made, order)


def _matrix(program: Program, weight: fx.Node, shape: list[int]) -> fx.Node:
    """A weight as a matrix of its own, which rewrites may lay out as products want it; a table as
    it is stored."""
    view = shaped(program, weight, shape)
    if view is weight or is_table(weight):
        return view
    return laid_out(program, view) or view
