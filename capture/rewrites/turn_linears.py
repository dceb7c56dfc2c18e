"""Rewrite: linear layers of several rows read their weights transposed, `[in, out]`.

torch stores `[out, in]`, and the library's product of a matrix with a transposed one is the slower
of the two where little is to be computed. On one AVX-512 core at 16 rows: 256 to 256 takes 49 us
instead of 65, 256 to 128 takes 28 instead of 37 with weights that come from the last cache, 34 and
38, 20 and 23 with those that stay in the second; at 128 rows 191 and 205, 104 and 116. For what
`pack_linears` does not take, which is better: eager segments, and processors other than x86-64.
"""

from __future__ import annotations

from math import prod

import torch
from torch import fx

from recreplay.capture.program import Program
from recreplay.capture.rewrites.pack_linears import float_layer

aten = torch.ops.aten


def turn_linears(program: Program) -> None:
    """Rewrite `program` in place. For the CPU alone."""
    for node in list(program.graph.nodes):
        if node.target is not aten.linear.default or not float_layer(node):
            continue
        if prod(node.meta["val"].shape[:-1]) > 1:
            _turn(program, node)
    program.sort()
    program.prune()


def _turn(program: Program, node: fx.Node) -> None:
    source, weight = node.args[0], node.args[1]
    bias = node.args[2] if len(node.args) > 2 else None
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    name = str(weight.target).partition(":")[2]
    turned = program.source("turned", name, weight.meta["val"].t().contiguous())
    rows, shape = source, list(source.meta["val"].shape)
    if len(shape) > 2:
        rows = program.call(aten.reshape.default, source, [-1, shape[-1]])
    if bias is None:
        result = program.call(aten.mm.default, rows, turned)
    else:
        result = program.call(aten.addmm.default, bias, rows, turned)
    if len(shape) > 2:
        out = turned.meta["val"].shape[1]
        result = program.call(aten.reshape.default, result, [*shape[:-1], out])
    program.replace(node, result)
