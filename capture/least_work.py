"""The least that any way of running a program must do: bytes it must touch, operations it must do.

What lies between operators is not counted, since fusion may keep all of it in registers.
"""

from __future__ import annotations

from collections import defaultdict
from math import prod

import torch
from torch import fx

from recreplay.capture.cost import PICKS, operator_cost
from recreplay.capture.dag import Cost
from recreplay.capture.program import Program
from recreplay.capture.rewrites.slice_early import slice_early
from recreplay.capture.rewrites.split_linears import split_linears

aten = torch.ops.aten
_LOOKUPS = (aten.embedding.default, aten.embedding_bag.padding_idx)


def leave_out_avoidable(program: Program) -> None:
    """Rewrite `program` in place, without the work that rewrites for every device save."""
    slice_early(program)
    split_linears(program)


def least_work(program: Program) -> Cost:
    """Bytes and operations of one bucket.

    Bytes: every input and output once, every weight once, and of a table the rows that are
    gathered, at most all of it. Operations: as `operator_cost` counts them.
    """
    gathered: dict[fx.Node, int] = defaultdict(int)
    whole: set[fx.Node] = set()
    flops = 0
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        flops += operator_cost(node).flops
        sources = [n for n in node.all_input_nodes if _must_be_read(n)]
        if node.target in _LOOKUPS:
            table, ids = node.args[0], node.args[1]
            if table in sources:
                width = table.meta["val"].shape[1] * table.meta["val"].element_size()
                gathered[table] += prod(ids.meta["val"].shape) * width
                sources.remove(table)
        elif node.target in PICKS and node.args[0] in sources:
            gathered[node.args[0]] += _nbytes(node.meta["val"])
            sources.remove(node.args[0])
        whole.update(sources)
    nbytes = sum(_nbytes(n.meta["val"]) for n in whole)
    nbytes += sum(
        min(count, _nbytes(table.meta["val"]))
        for table, count in gathered.items()
        if table not in whole
    )
    nbytes += sum(_nbytes(n.meta["val"]) for n in program.outputs.values())
    return Cost(nbytes, flops)


def crossing(program: Program) -> int:
    """Bytes of one bucket's inputs and outputs, which a device of its own memory is sent and sends
    back."""
    inputs = [
        n for n in program.graph.find_nodes(op="placeholder") if str(n.target).startswith("input:")
    ]
    return sum(_nbytes(n.meta["val"]) for n in [*inputs, *program.outputs.values()])


def _must_be_read(node: fx.Node) -> bool:
    """Whether it is an input or a weight; constants may be compiled in."""
    return node.op == "placeholder" and not str(node.target).startswith("const:")


def _nbytes(tensor: torch.Tensor) -> int:
    return prod(tensor.shape) * tensor.element_size()
