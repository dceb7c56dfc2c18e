"""Rewrite, for inductor on CUDA: bags of one length are rows that are looked up and added.

inductor has no code for `embedding_bag`: it calls torch's kernel, and makes kernels of its own for
what comes before, ids that are shifted, and after, a buffer that is written. Lookups and sums it
takes into one loop with both. On a CPU the opposite holds (DESIGN). What is launched was counted
(`tests/emulated`), how long it takes was not measured on a device yet.
"""

from __future__ import annotations

import torch

from recreplay.capture.lookups import find_lookups
from recreplay.capture.program import Program

aten = torch.ops.aten


def spread_bags(program: Program) -> None:
    """Rewrite `program` in place. For packages on CUDA alone."""
    for lookup in find_lookups(program):
        bag = lookup.node
        full = lookup.output.meta["val"].dtype == torch.float32
        if bag.target is not aten.embedding_bag.padding_idx or not lookup.stackable or not full:
            continue
        ids = program.call(aten.reshape.default, lookup.ids, [-1, lookup.length])
        rows = program.call(aten.embedding.default, bag.args[0], ids)
        pool = aten.mean.dim if lookup.pooling == "mean" else aten.sum.dim_IntList
        program.replace(lookup.output, program.call(pool, rows, [1]))
    program.sort()
    program.prune()
