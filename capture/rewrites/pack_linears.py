"""Rewrite: linear layers read copies of their weights that lie in blocks (`packed_linear`).

A matrix library packs its right operand on every call, and sets the call up; with few rows both are
a large part of it. On one AVX-512 core at 16 rows a layer of 1,024 to 512 takes 148 us so and 274
us by MKL over the transposed weight, 256 to 256 takes 20 and 28, 128 to 64 takes 3.1 and 5.4; at
128 rows 1,174 and 1,376, 148 and 170, 20 and 24. On one AVX2 core at 16 rows, from the last cache,
1,024 to 512 takes 298 us and 490, 256 to 256 takes 45 and 65. The copy lives beside the stored
weight; a refresh makes it again. Products of stacked branches are layers of several lanes over the
stacked storage.

Only for packages that inductor compiles: operator by operator, `turn_linears` is what is left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from recreplay.capture.program import Program
from recreplay.capture.views import base, slice_arguments
from recreplay.runtime.packed_linear import packed_linear_operator

aten = torch.ops.aten
_BATCHED = (aten.bmm.default, aten.baddbmm.default)
_LARGE = 1 << 17  # elements of a weight that fills half of a second cache by itself


def pack_large_linears(program: Program, even: bool = False) -> None:
    """Rewrite large layers in `program`, in place: see `pack_linears`."""
    for node in _layers(program, even):
        if _is_large(node):
            _pack(program, node)
    program.sort()
    program.prune()


def pack_linears(program: Program, even: bool = False) -> None:
    """Rewrite `program` in place. For the CPU alone.

    `even`: leave weights with an odd number of columns, of which bfloat16 has no pairs.
    """
    for node in _layers(program, even):
        _pack(program, node)
    for node in list(program.graph.nodes):
        if node.target in _BATCHED:
            _pack_lanes(program, node, even)
    program.sort()
    program.prune()


def _layers(program: Program, even: bool) -> list[fx.Node]:
    layers = program.graph.find_nodes(op="call_function", target=aten.linear.default)
    found = [node for node in layers if _takes_matrices(node) and _copy(node.args[1])]
    return [n for n in found if not (even and n.args[1].meta["val"].shape[1] % 2)]


def _is_large(node: fx.Node) -> bool:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return bool(weight.meta["val"].numel() >= _LARGE)


def float_layer(node: fx.Node) -> bool:
    """Whether a linear layer takes matrices of float32 and reads a stored weight as it is."""
    return _takes_matrices(node) and _is_stored(node.args[1])


def _takes_matrices(node: fx.Node) -> bool:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    value = source.meta["val"]
    return bool(value.ndim > 1 and value.dtype == torch.float32)


def _copy(weight: object) -> tuple[str, fx.Node] | None:
    """The kind of copy that takes the place of a weight, and the stored one that it is made of: as
    it is, transposed, or of a convolution of single items."""
    assert isinstance(weight, fx.Node)
    kind, stored = "packed", weight
    if weight.target in (aten.t.default, aten.squeeze.dims):
        kind = "turned_packed" if weight.target is aten.t.default else "packed"
        stored = weight.all_input_nodes[0]
    return (kind, stored) if _is_stored(stored) else None


def _is_stored(weight: object) -> bool:
    return isinstance(weight, fx.Node) and str(weight.target).startswith("weight:")


def _pack(program: Program, node: fx.Node) -> None:
    source, weight, *bias = node.args
    assert isinstance(weight, fx.Node)
    columns = int(weight.meta["val"].shape[0])
    packed = _packed(program, weight)
    _replace(program, node, source, packed, bias[0] if bias else None, lanes=1, columns=columns)


def _pack_lanes(program: Program, node: fx.Node, even: bool) -> None:
    """`[bias +] x @ weight` of each lane, as `stack_branches` leaves it: see `_stacked_weight`
    there."""
    *bias, source, turned = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(turned, fx.Node)
    lanes, _, columns = node.meta["val"].shape
    storage = _storage(turned)
    if source.meta["val"].dtype != torch.float32 or node.kwargs:
        return
    if storage is None:
        if not (_is_made(turned) or (not even and _lies_stored(turned))):
            return
    elif even and storage.meta["val"].shape[1] % 2:
        return
    added = bias[0] if bias else None
    if isinstance(added, fx.Node):
        if added.target is not aten.unsqueeze.default or added.args[1] != 1:
            return
        added = added.args[0]
        assert isinstance(added, fx.Node)
        if added.meta["val"].shape != (lanes, columns):
            return
    if source.target is aten.expand.default:  # one matrix for all lanes
        alone = source.args[0]
        assert isinstance(alone, fx.Node)
        if alone.meta["val"].shape == (1, *source.meta["val"].shape[1:]):
            source = alone
    if storage is None:
        _replace(program, node, source, turned, added, lanes=0, columns=columns)
    else:
        packed = _packed(program, storage)
        _replace(program, node, source, packed, added, lanes=lanes, columns=columns)


def _lies_stored(weight: fx.Node) -> bool:
    """Whether it is all of a stored weight of float32 as it lies there, `[lanes, in, out]`, whose
    few columns are read as they are."""
    value, stored = weight.meta["val"], base(weight)
    whole = _is_stored(stored) and stored.meta["val"].numel() == value.numel()
    return bool(whole and value.is_contiguous() and value.dtype == torch.float32)


def _is_made(weight: fx.Node) -> bool:
    """Whether a weight is what `split_linears` makes of a stored one, for each lane."""
    sums = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor)
    return weight.target in sums and weight.meta["val"].dtype == torch.float32


def _storage(turned: fx.Node) -> fx.Node | None:
    """The stored matrix of which each lane of `turned` is the first rows of an equal share,
    transposed; None for anything else."""
    if turned.target is not aten.transpose.int or turned.args[1:] != (1, 2):
        return None
    view = turned.args[0]
    assert isinstance(view, fx.Node)
    if view.target is aten.slice.Tensor:
        dim, start, _, step = slice_arguments(view)
        if (dim, start or 0, step) != (1, 0, 1):
            return None
        view = view.all_input_nodes[0]
    if view.target is not aten.view.default:
        return None
    storage = view.all_input_nodes[0]
    stored, shares = storage.meta["val"].shape, view.meta["val"].shape
    whole = len(stored) == 2 and len(shares) == 3 and stored[1] == shares[2]
    return storage if whole and _is_stored(storage) else None


def _packed(program: Program, weight: fx.Node) -> fx.Node:
    copy = _copy(weight)
    assert copy is not None
    kind, stored = copy
    name, value = str(stored.target).partition(":")[2], weight.meta["val"]
    return program.source(kind, name, program.fake(value.shape, value.dtype))


def _replace(
    program: Program,
    node: fx.Node,
    source: Any,
    packed: fx.Node,
    bias: Any,
    lanes: int,
    columns: int,
) -> None:
    """Have a packed layer take the place of a product, and of a ReLU that alone reads it."""
    users = list(node.users)
    relu = len(users) == 1 and users[0].target is aten.relu.default
    last = users[0] if relu and node not in program.outputs.values() else node
    arguments = (source, packed, bias, lanes, columns, last is not node)
    program.replace(last, program.call(packed_linear_operator(), *arguments))
