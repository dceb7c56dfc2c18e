"""A program of torch.export without writes to tensors and without calls that others stand for."""

from __future__ import annotations

import operator
from functools import cache

import torch
from torch import fx
from torch.export import ExportedProgram, default_decompositions

aten = torch.ops.aten
SIZE_CHECKS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
# Functions of Python in exported programs, on sizes and on operators with several results.
_OF_PYTHON = {operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv}


def functional(exported: ExportedProgram) -> ExportedProgram:
    """The program after `run_decompositions({})`, which traces it twice more.

    Most models call nothing that it would change, and are returned as they are: exporting 400
    features takes half as long so.
    """
    if not _is_functional(exported):
        decomposed: ExportedProgram = exported.run_decompositions({})
        return decomposed
    exported.graph.eliminate_dead_code()
    return exported


def drop_unread(graph: fx.Graph) -> None:
    """Leave out what no output is made of: a loss that is computed beside the scores, of items that
    a mask selects, has sizes that no graph can have, and checks of these that keep it."""
    for node in list(graph.nodes):
        if node.target in SIZE_CHECKS:
            graph.erase_node(node)
    graph.eliminate_dead_code()


@cache
def _composite_kept() -> frozenset[object]:
    """Operators that are made of others and that torch leaves whole."""
    return frozenset(op for op in default_decompositions() if op._can_decompose())


def _is_functional(exported: ExportedProgram) -> bool:
    for node in exported.graph.nodes:
        if node.op != "call_function" or node.target in _OF_PYTHON:
            continue
        called = node.target
        if not isinstance(called, torch._ops.OpOverload) or called._schema.is_mutable:
            return False
        if called._can_decompose() and called not in _composite_kept():
            return False
    return True
