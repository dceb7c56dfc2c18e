"""A product of two tensors that is summed over some dimensions, as `einsum` has it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from recreplay.capture.program import Program

aten = torch.ops.aten
LETTERS = "abcdefghijkl"


def terms_of(equation: str) -> tuple[list[str], str] | None:
    """The letters of each factor of an `einsum`, and of its result; None where dots stand for some,
    or no result is named."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    return (given.split(","), result) if arrow and "." not in equation else None


@dataclass(frozen=True)
class Contraction:
    """`rows` times `weight`, one letter for each dimension, as `einsum` has them."""

    rows: fx.Node
    weight: fx.Node
    of_rows: str
    of_weight: str
    result: str

    def sizes(self) -> dict[str, int]:
        shapes = ((self.of_rows, self.rows), (self.of_weight, self.weight))
        return {c: int(d) for of, n in shapes for c, d in zip(of, n.meta["val"].shape, strict=True)}

    @property
    def each(self) -> str:
        """Letters of what there is a product for."""
        return "".join(c for c in self.of_weight if c in self.of_rows and c in self.result)

    @property
    def summed(self) -> str:
        return "".join(c for c in self.of_weight if c not in self.result)

    @property
    def alone(self) -> tuple[str, str]:
        """Letters of the rows, and of the columns of the weight."""
        of_rows, of_weight = self.of_rows, self.of_weight
        return (
            "".join(c for c in of_rows if c not in of_weight),
            "".join(c for c in of_weight if c not in of_rows),
        )

    def is_spelt(self) -> bool:
        """Whether no letter is twice in one or without a meaning, and no dimension stretched."""
        of_rows, of_weight, result = self.of_rows, self.of_weight, self.result
        both = set(of_rows) & set(of_weight)
        sizes = [
            [n.meta["val"].shape[of.index(c)] for c in sorted(both)]
            for n, of in ((self.rows, of_rows), (self.weight, of_weight))
        ]
        return (
            all(len(set(letters)) == len(letters) for letters in (of_rows, of_weight, result))
            and set(result) <= {*of_rows, *of_weight} <= {*result, *both}
            and sizes[0] == sizes[1]
        )


def laid(program: Program, made: fx.Node, letters: str, product: Contraction) -> fx.Node:
    """The result, of what has these dimensions, some of which may be one."""
    sizes = product.sizes()
    made = shaped(program, made, [sizes[c] for c in letters])
    return permuted(program, made, letters, product.result)


def shaped(program: Program, node: fx.Node, shape: list[int]) -> fx.Node:
    if list(node.meta["val"].shape) == shape:
        return node
    return program.call(aten.reshape.default, node, shape)


def permuted(program: Program, node: fx.Node, letters: str, order: str) -> fx.Node:
    if letters == order:
        return node
    return program.call(aten.permute.default, node, [letters.index(c) for c in order])
