"""Rewrite, for CUDA: what follows a matrix product is part of it, or of what comes after.

A layer with its bias and its ReLU is one call of cuBLASLt (`_addmm_activation`), where it is two
kernels otherwise: torch's `linear` and `relu` operator by operator, and inductor, which takes bias
and ReLU into a loop behind the product. Stacked layers have no such call, and `baddbmm` begins by
writing the bias over the whole result; added afterwards, it is part of inductor's next loop. What
is launched was counted (`tests/emulated`), how long it takes was not measured on a device yet.
"""

from __future__ import annotations

import torch
from torch import fx

from recreplay.capture.program import Program

aten = torch.ops.aten


def fuse_epilogues(program: Program) -> None:
    """Rewrite `program` in place. For CUDA alone."""
    for node in list(program.graph.find_nodes(op="call_function", target=aten.relu.default)):
        layer = node.args[0]
        assert isinstance(layer, fx.Node)
        if layer.target is aten.linear.default and layer not in program.outputs.values():
            biased = len(layer.args) > 2 and layer.args[2] is not None
            if biased and len(layer.users) == 1:
                _fuse(program, layer, node)
    for node in list(program.graph.find_nodes(op="call_function", target=aten.baddbmm.default)):
        if not node.kwargs:  # beta and alpha
            bias, *factors = node.args
            product = program.call(aten.bmm.default, *factors)
            program.replace(node, program.call(aten.add.Tensor, product, bias))
    program.sort()
    program.prune()


def _fuse(program: Program, layer: fx.Node, relu: fx.Node) -> None:
    source, weight, bias = layer.args
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    shape = list(layer.meta["val"].shape)
    rows = source
    if len(shape) != 2:
        rows = program.call(aten.reshape.default, source, [-1, source.meta["val"].shape[-1]])
    turned = program.call(aten.t.default, weight)
    result = program.call(aten._addmm_activation.default, bias, rows, turned)
    if len(shape) != 2:
        result = program.call(aten.view.default, result, shape)
    program.replace(relu, result)
