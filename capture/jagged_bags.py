"""Lookups of jagged values whose buckets have more room than a request has values.

What lies beyond the values of the last row must not fall into its bag. Ending the last bag earlier
is not enough: with `include_last_offset`, torch 2.13 reads the last offset in some of its kernels
and takes the number of ids in others (float64, mean and max among them). So the room gets a bag of
its own, which is dropped.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from recreplay.capture.program import Program
from recreplay.capture.views import slice_arguments
from recreplay.runtime.spec import InputSpec

aten = torch.ops.aten


def bag_with_room(
    program: Program, arguments: dict[str, Any], division: InputSpec, staged: fx.Node
) -> fx.Node:
    """`embedding_bag` over jagged ids: the pooled rows `[rows, dim]`.

    `arguments` are the operator's, by name. `division` divides the ids among the rows, and `staged`
    is its placeholder: see `InputSpec.staged`.
    """
    room = int(arguments["indices"].meta["val"].shape[0])
    given = arguments["offsets"]
    with_end = bool(arguments.get("include_last_offset", False))
    rows = int(given.meta["val"].shape[0]) - with_end
    ends = _ends(program, division, staged, given, rows, with_end, room)
    bag = program.call(
        aten.embedding_bag.padding_idx,
        arguments["weight"],
        arguments["indices"],
        ends,
        arguments.get("scale_grad_by_freq", False),
        arguments.get("mode", 0),
        arguments.get("sparse", False),
        arguments.get("per_sample_weights"),
        True,
        arguments.get("padding_idx"),
    )
    bag.meta["jagged"] = True
    pooled = program.call(operator.getitem, bag, 0)
    return program.call(aten.slice.Tensor, pooled, 0, 0, rows)


def _ends(
    program: Program,
    division: InputSpec,
    staged: fx.Node,
    given: fx.Node,
    rows: int,
    with_end: bool,
    room: int,
) -> fx.Node:
    """Where each bag begins, the number of values, and the room: int `[rows + 2]`."""
    if _is_prefix(given, staged):
        return staged
    dtype = given.meta["val"].dtype
    end = program.constant(torch.tensor([room], dtype=dtype))
    if with_end:
        return program.call(aten.cat.default, [given, end])
    if division.kind == "lengths":
        total = program.call(aten.sum.dim_IntList, staged, [0], True)
    else:
        total = program.call(aten.slice.Tensor, staged, 0, rows, rows + 1)
    if total.meta["val"].dtype != dtype:
        total = program.call(aten.to.dtype, total, dtype)
    return program.call(aten.cat.default, [given, total, end])


def _is_prefix(node: fx.Node, whole: fx.Node) -> bool:
    """Whether `node` is the first items of `whole`, cut by slices."""
    while node.target is aten.slice.Tensor:
        dim, start, _, step = slice_arguments(node)
        if dim != 0 or start not in (0, None) or step != 1:
            return False
        node = node.args[0]  # type: ignore[assignment]
    return node is whole
