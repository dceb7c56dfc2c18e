"""Rewrite: large linear layers of several rows read weights that are packed once, when loaded.

A matrix library packs its right operand into blocks on every call; with few rows, that is a large
part of the call. On one AVX-512 core a layer of 1,024 to 512 takes 168 us packed and 265 us not at
16 rows, 1,233 and 1,434 us at 128; at one row the product reads the weight once either way, and
packed is slower (46 and 39 us). ONNX Runtime packs too, and was up to 1.6 times as fast without
this. The packed copy is oneDNN's and lives beside the stored weight; a refresh packs it again.
What is smaller is left to `turn_linears`.
"""

from __future__ import annotations

import torch
from torch import fx

from recreplay.capture.specialise import Program

aten = torch.ops.aten
# Elements of a weight. Setting up a call of oneDNN takes 10 us: at 16 rows, 512 to 256 is even.
_LEAST = 1 << 17


def pack_linears(program: Program) -> None:
    """Rewrite `program` in place. For the CPU alone."""
    for node in list(program.graph.nodes):
        if node.target is aten.linear.default and several_rows(node) and _is_large(node):
            _pack(program, node)
    program.sort()
    program.prune()


def several_rows(node: fx.Node) -> bool:
    """Whether a linear layer takes several rows of float32 and reads a stored weight as it is."""
    source, weight = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    value = source.meta["val"]
    return bool(
        value.ndim > 1
        and value[..., 0].numel() > 1
        and value.dtype == torch.float32
        and str(weight.target).startswith("weight:")
    )


def _is_large(node: fx.Node) -> bool:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return bool(weight.meta["val"].numel() >= _LEAST)


def _pack(program: Program, node: fx.Node) -> None:
    source, weight = node.args[0], node.args[1]
    bias = node.args[2] if len(node.args) > 2 else None
    assert isinstance(weight, fx.Node)
    packed = program.source("packed", str(weight.target).partition(":")[2], weight.meta["val"])
    users = list(node.users)
    relu = len(users) == 1 and users[0].target is aten.relu.default
    last = users[0] if relu and node not in program.outputs.values() else node
    result = program.call(
        torch.ops.mkldnn._linear_pointwise.default,
        source,
        packed,
        bias,
        "none" if last is node else "relu",
        [],
        "",
    )
    program.replace(last, result)
