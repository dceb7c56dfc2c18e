"""Which feature each operator belongs to: the branches of a program, and the trunk.

An operator that depends on exactly one feature belongs to that feature's branch. Columns of one
input matrix that is read by columns only are features of their own, named `input[:, c]`. Operators
that depend on no input at all (a transposed weight, say) join the branch of their readers, if
there is one.
"""

from __future__ import annotations

import torch
from torch import fx

from recreplay.capture.cost import operator_cost
from recreplay.capture.dag import Dag
from recreplay.capture.program import Program
from recreplay.capture.views import base, launches

aten = torch.ops.aten


def branches(program: Program) -> dict[fx.Node, str | None]:
    """The feature of each operator; None is the trunk."""
    depends = dependencies(program)
    for node in reversed(program.graph.nodes):
        if node.op == "call_function" and not depends[node]:
            readers = {depends[u] for u in node.users}
            if len(readers) == 1:
                depends[node] = next(iter(readers))
    return {
        node: next(iter(found)) if len(found := depends[node]) == 1 else None
        for node in program.graph.nodes
        if node.op == "call_function"
    }


def dependencies(program: Program) -> dict[fx.Node, frozenset[str]]:
    """The features that each node depends on.

    A rewrite that computes several features by one operator says in `meta["features"]` which of
    its pieces is whose, so that what follows is still the work of one feature.
    """
    depends: dict[fx.Node, frozenset[str]] = {}
    for node in program.graph.nodes:
        known = node.meta.get("features")
        depends[node] = _features_of(program, node, depends) if known is None else known
    return depends


def _features_of(
    program: Program, node: fx.Node, depends: dict[fx.Node, frozenset[str]]
) -> frozenset[str]:
    target = str(node.target)
    if node.op == "placeholder":
        if target.startswith("input:"):
            name = target.removeprefix("input:")
            return frozenset() if name in program.dividers else frozenset([name])
        if target.startswith("staged:"):
            return frozenset(program.staged[target.removeprefix("staged:")])
        return frozenset()
    column = column_of(node)
    if column is not None:
        return frozenset([column])
    return frozenset().union(*(depends[n] for n in node.all_input_nodes))


def column_of(node: fx.Node) -> str | None:
    """`input[:, c]` or `input[:, a:b]` where `node` cuts columns out of an input read only so."""
    if not _cuts_columns(node):
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if not all(_cuts_columns(user) for user in source.users):
        return None
    name = str(source.target).removeprefix("input:")
    if node.target is aten.select.int:
        return f"{name}[:, {node.args[2]}]"
    start = int(node.args[2]) if len(node.args) > 2 and node.args[2] is not None else 0  # type: ignore[arg-type]
    return f"{name}[:, {start}:{start + int(node.meta['val'].shape[1])}]"


def _cuts_columns(node: fx.Node) -> bool:
    if node.target not in (aten.select.int, aten.slice.Tensor):
        return False
    source = node.args[0]
    return (
        isinstance(source, fx.Node)
        and str(source.target).startswith("input:")
        and source.meta["val"].ndim == 2
        and len(node.args) > 1
        and node.args[1] in (1, -1)
    )


def to_dag(program: Program) -> tuple[Dag, list[fx.Node]]:
    """The launching operators of a program as plain data for stream assignment, and the node of
    each."""
    nodes = launches(program.graph)
    index = {node: i for i, node in enumerate(nodes)}
    feature = branches(program)
    reads = {n: {base(d) for d in n.all_input_nodes} for n in nodes}
    dag = Dag(
        tuple(n.name for n in nodes),
        tuple(sorted({(index[d], index[n]) for n in nodes for d in reads[n] if d in index})),
        tuple(operator_cost(n) for n in nodes),
        tuple(feature[n] for n in nodes),
    )
    return dag, nodes
