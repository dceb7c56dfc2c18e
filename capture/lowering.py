"""Which weights of a program are stored in a lower type, and what each of them is read as."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from recreplay.capture.lookups import find_lookups
from recreplay.capture.precision import FULL, Precision
from recreplay.capture.products import is_factor
from recreplay.capture.program import Program
from recreplay.capture.views import is_view
from recreplay.capture.weight_stacks import WeightStack
from recreplay.runtime.lowered import Stored, value_dtype


@dataclass(frozen=True)
class Lowering:
    """Weights that are stored in a lower type, by name: `tables`, and `factors` of products.

    `left`: tables that stay in float32 because something else than a lookup reads them too.
    """

    precision: Precision = FULL
    tables: frozenset[str] = frozenset()
    factors: frozenset[str] = frozenset()
    left: tuple[str, ...] = ()

    def stored(self) -> dict[str, Stored]:
        """What each of them is stored as."""
        found: dict[str, Stored] = {}
        for names, kind in (
            (self.tables, self.precision.rows),
            (self.factors, self.precision.products),
        ):
            if kind is not None:
                found |= dict.fromkeys(names, kind)
        return found

    def dtype(self, name: str) -> torch.dtype | None:
        """Of what is stored for each value of a weight; None if it is as the model has it."""
        kind = self.stored().get(name)
        return None if kind is None else value_dtype(kind)

    def without_split(self, stacks: Sequence[WeightStack]) -> Lowering:
        """A stack is one tensor: if one of its weights is not lowered, none is."""
        split = {
            name for s in stacks if not self.factors.issuperset(s.members) for name in s.members
        }
        return replace(self, factors=self.factors - split)


NOTHING = Lowering()


def with_storages(names: frozenset[str], stacks: Sequence[WeightStack]) -> frozenset[str]:
    """`names`, and the stacks that they lie in."""
    return names | {stack.name for stack in stacks if stack.members[0] in names}


def find_lowering(program: Program, precision: Precision) -> Lowering:
    """What can be lowered: tables that lookups alone read, and weights that products alone read.

    From a program before any rewrite; the same for every bucket.
    """
    tables, left = _tables(program) if precision.rows is not None else ([], [])
    factors = _factors(program) if precision.products is not None else []
    return Lowering(precision, frozenset(tables), frozenset(factors), tuple(left))


def _tables(program: Program) -> tuple[list[str], list[str]]:
    """Float32 tables that lookups alone read, and those that something else reads as well."""
    lookups: dict[str, list[bool]] = {}
    nodes: dict[str, set[fx.Node]] = {}
    for lookup in find_lookups(program):
        lookups.setdefault(lookup.weight, []).append(lookup.stackable or lookup.jagged)
        nodes.setdefault(lookup.weight, set()).add(lookup.node)
    makes = _sources(program)
    good: list[str] = []
    left: list[str] = []
    for node in _weights(program):
        name = str(node.target).partition(":")[2]
        if name in lookups and node.meta["val"].ndim == 2:
            alone = set(node.users) == nodes[name] and name not in makes
            fits = all(lookups[name]) and alone
            (good if fits else left).append(name)
    return good, left


def _factors(program: Program) -> list[str]:
    """Float32 weights that are operands of matrix products, perhaps turned, and nothing else."""
    makes = _sources(program)
    found = []
    for node in _weights(program):
        name, reads = str(node.target).partition(":")[2], list(readers(node))
        if reads and name not in makes and all(is_factor(view, user) for user, view in reads):
            found.append(name)
    return found


def _sources(program: Program) -> set[str]:
    """What other weights are made of, in float32."""
    return {name for made in program.made.values() for name in made.weights}


def _weights(program: Program) -> Iterator[fx.Node]:
    for node in program.graph.find_nodes(op="placeholder"):
        if str(node.target).startswith("weight:") and node.meta["val"].dtype == torch.float32:
            yield node


def readers(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Who reads a weight, and which view of it."""
    for user in node.users:
        if is_view(user):
            yield from readers(user)
        else:
            yield user, node
