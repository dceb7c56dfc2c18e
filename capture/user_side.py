"""The user side: which operators a request needs once per user, and what eager takes instead.

A request has many candidates for one user, or for a few. What depends on inputs of the user alone
is computed for each user and not for each candidate, and brought to the candidates' rows where it
first meets one of them. The model is not changed: it is exported as if every row had a user of its
own, and each operator of the user's side is then specialised to the number of users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx

from recreplay.capture.division import division_of, starts_of
from recreplay.capture.jagged_axis import first_symbol, symbolic
from recreplay.capture.program import Program
from recreplay.capture.refusals import stack_line
from recreplay.runtime.errors import UnsupportedModelError
from recreplay.runtime.spec import USER_INDEX, InputSpec

aten = torch.ops.aten


def user_operators(
    graph: fx.Graph, inputs: Mapping[fx.Node, InputSpec], ignored: set[Any]
) -> frozenset[fx.Node]:
    """Nodes of an exported graph that run once per user, the user's own placeholders included.

    Dependencies are those of tensors: sizes are known per bucket. Where a value leaves this side,
    each of its rows must be one user's, so a value of any other shape (say `[B * L, d]`) is left
    to the candidates' side, with what follows from it. `ignored` are operators that nothing reads
    (assertions).
    """
    from_user: dict[fx.Node, bool] = {}  # of tensors that depend on some input
    for node in graph.nodes:
        if node in inputs:
            from_user[node] = inputs[node].user
        elif node.op == "call_function" and _has_tensor(node):
            known = [from_user[n] for n in node.all_input_nodes if n in from_user]
            if known:
                from_user[node] = all(known)
    side = {node for node, user in from_user.items() if user}
    changed = True
    while changed:
        leaving = {node for node in side if _leaves(node, side, ignored)}
        drop = {node for node in leaving if node not in inputs and not _one_row_each(node, inputs)}
        changed = bool(drop)
        side -= drop
        # What reads a value of the candidates' side belongs there too.
        for node in graph.nodes:
            tensors = [n for n in node.all_input_nodes if n in from_user]
            if node in side and node not in inputs and any(n not in side for n in tensors):
                side.discard(node)
                changed = True
    for node in side & inputs.keys():
        if inputs[node].kind != "rows" and _leaves(node, side, ignored):
            reader = next(u for u in node.users if u not in side and _reads(u, ignored))
            raise UnsupportedModelError(
                f"user input {inputs[node].name!r} is jagged and is read together with inputs of "
                f"candidates, by operator {reader.target}{stack_line(reader)}; pool it first, or "
                "capture it as an input of the candidates"
            )
    return frozenset(side)


def _leaves(node: fx.Node, side: set[fx.Node], ignored: set[Any]) -> bool:
    return any(user not in side and _reads(user, ignored) for user in node.users)


def _reads(user: fx.Node, ignored: set[Any]) -> bool:
    return user.op == "output" or (user.target not in ignored and _has_tensor(user))


def _has_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(v, torch.Tensor) for v in values)


def _one_row_each(node: fx.Node, inputs: Mapping[fx.Node, InputSpec]) -> bool:
    """Whether dimension 0 is the batch, and no other dimension depends on it."""
    batch = batch_symbol(inputs)
    if first_symbol(node) != batch:
        return False
    return all(isinstance(symbolic(d), int) for d in node.meta["val"].shape[1:])


def batch_symbol(inputs: Mapping[fx.Node, InputSpec]) -> Any:
    """What the exported program calls the number of rows."""
    for node, spec in inputs.items():
        if spec.kind in ("rows", "mask", "starts", "lengths"):
            return first_symbol(node)
    return first_symbol(next(n for n, s in inputs.items() if s.kind == "offsets")) - 1


def user_sizes(inputs: Mapping[fx.Node, InputSpec], users: int) -> dict[Any, int]:
    """The value of each symbol on the user's side."""
    sizes = {batch_symbol(inputs): users}
    for node, spec in inputs.items():
        if spec.kind == "values":
            sizes[first_symbol(node)] = spec.capacity * users
    return sizes


def number(value: Any, sizes: Mapping[Any, int]) -> Any:
    """A size, or a number made of sizes, for known values of the symbols."""
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value
    known = value.node.expr.xreplace(dict(sizes))
    kind = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}[type(value)]
    return kind(known)


class CandidateValues(dict[fx.Node, Any]):
    """Values for the rows of the bucket; those of the user side are brought there when asked
    for."""

    def __init__(self, program: Program, users: int, by_user: dict[fx.Node, Any]) -> None:
        super().__init__()
        self._program = program
        self._users = users
        self._by_user = by_user

    def __missing__(self, node: fx.Node) -> fx.Node:
        value, rows = self._by_user[node], self._program.bucket
        row = list(value.meta["val"].shape[1:])
        if self._users > 1:
            fake = self._program.fake((rows,), torch.int64)
            index = self._program.source("input", USER_INDEX, fake)
            value = self._program.call(aten.index_select.default, value, 0, index)
        elif rows > 1:
            value = self._program.call(aten.expand.default, value, [rows, *row])
        self[node] = value
        return cast(fx.Node, value)


def for_eager(
    inputs: Sequence[InputSpec], request: Mapping[str, torch.Tensor], rows: int
) -> dict[str, torch.Tensor]:
    """A request as the model itself takes it: every row with its user's inputs, and none that is
    padding."""
    index = next((request[s.name] for s in inputs if s.kind == "index"), None)
    which = torch.zeros(rows, dtype=torch.int64) if index is None else index
    plain: dict[str, torch.Tensor] = {}
    for spec in inputs:
        if spec.kind == "index":
            continue
        if spec.kind == "mask":
            plain[spec.name] = torch.ones(rows, dtype=torch.bool)
            continue
        value = request[spec.name]
        if not spec.user:
            plain[spec.name] = value
        elif spec.kind == "rows":
            plain[spec.name] = value[which.to(value.device)]
        elif spec.kind != "values":
            members = [s for s in inputs if s.along == spec.name]
            total = len(request[members[0].name])
            starts = starts_of(spec, value, total)
            lengths = (starts[1:] - starts[:-1])[which]
            plain[spec.name] = division_of(spec, lengths).to(value.dtype)
            for member in members:
                values = request[member.name]
                pieces = [values[starts[i] : starts[i + 1]] for i in which.tolist()]
                plain[member.name] = torch.cat([values[:0], *pieces])
    return {spec.name: plain[spec.name] for spec in inputs if spec.kind != "index"}
