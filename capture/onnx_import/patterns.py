"""Compare how a value of a graph is computed with how it should be, operator by operator.

A pattern is an `Op`, a `Branches`, `ZEROS`, a number (a stored value of one element), or a name,
which stands for one value: the first that it meets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from recreplay.capture.onnx_import.folding import fold
from recreplay.capture.onnx_import.graph import Graph, Step

_REDUCTION = {"keepdims": 1, "noop_with_empty_axes": 0}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ReduceSum": _REDUCTION,
    "ReduceMean": _REDUCTION,
    "ReduceMax": _REDUCTION,
    "Shape": {"start": 0},
    "Gather": {"axis": 0},
    "Reshape": {"allowzero": 0},
    "SequenceEmpty": {"dtype": 1},
    "ConcatFromSequence": {"new_axis": 0},
    "Cast": {"saturate": 1, "round_mode": "up"},
}


@dataclass(frozen=True)
class Op:
    """The one output of an operator; attributes that are not named have ONNX's defaults."""

    op: str
    inputs: tuple[Pattern, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"operator {self.op}"


@dataclass(frozen=True)
class Branches:
    """The one output of `If`."""

    condition: Pattern
    then: Pattern
    other: Pattern

    def __str__(self) -> str:
        return "operator If"


@dataclass(frozen=True)
class _Zeros:
    """A stored row of zeros, `[1, width]`."""

    def __str__(self) -> str:
        return "a stored row of zeros"


ZEROS = _Zeros()
Pattern = Op | Branches | _Zeros | int | str


def op(name: str, *inputs: Pattern, **attributes: Any) -> Op:
    return Op(name, inputs, attributes)


class DiffersError(Exception):
    """A value is not computed as the pattern says; the message says where."""


class Scope:
    """The values of a graph, and of those around it where it is a branch or the body of a loop."""

    def __init__(self, graph: Graph, outer: Scope | None = None) -> None:
        self.outer = outer
        own = {i.name for i in graph.inputs} | graph.producers().keys()
        if outer is not None:
            visible = {k: v for k, v in outer.constants.items() if k not in own}
            graph = fold(replace(graph, constants=visible | dict(graph.constants)))
        self._own = own | graph.constants.keys()
        self.constants: Mapping[str, torch.Tensor] = graph.constants
        self.made = graph.producers()
        self._branches: dict[int, Scope] = {}  # by the identity of their graphs

    def branch(self, graph: Graph) -> Scope:
        """The scope of a branch of one of the steps here."""
        return self._branches.setdefault(id(graph), Scope(graph, self))

    def find(self, name: str) -> Value:
        """The value that a name means here: of a copy what it copies, and of an `If` with a stored
        condition what its branch gives."""
        scope = self
        while True:
            step = scope.made.get(name)
            if step is not None and step.op == "Identity":
                name = step.input(0)
            elif step is not None and step.op == "If" and step.inputs[0] in scope.constants:
                first = bool(scope.constants[step.inputs[0]].any())
                taken = step.attributes["then_branch" if first else "else_branch"]
                name = taken.outputs[step.outputs.index(name)]
                scope = scope.branch(taken)
            elif name in scope._own or scope.outer is None:
                return Value(scope, name)
            else:
                scope = scope.outer


@dataclass(frozen=True)
class Value:
    """A value by its name in the graph that makes it."""

    scope: Scope
    name: str

    @property
    def step(self) -> Step | None:
        """What makes it; None for an input or a constant."""
        return None if self.name in self.scope.constants else self.scope.made.get(self.name)

    @property
    def constant(self) -> torch.Tensor | None:
        return self.scope.constants.get(self.name)

    def __str__(self) -> str:
        return f"the value {self.name!r}" if self.step is None else str(self.step)


@dataclass
class Match:
    """What the names of patterns stand for so far, and how many operators were as they should."""

    bound: dict[str, Value]
    agreed: int = 0
    widths: set[int] = field(default_factory=set)  # of rows of zeros

    def check(self, value: Value, pattern: Pattern) -> None:
        """Raises `DiffersError` where `value` is anything else than `pattern`."""
        if isinstance(pattern, str):
            _agree(self.bound.setdefault(pattern, value) == value, value, f"the {pattern}")
        elif isinstance(pattern, int):
            _agree(_is_number(value, pattern), value, f"the number {pattern}")
        elif isinstance(pattern, _Zeros):
            self._check_zeros(value)
        elif isinstance(pattern, Branches):
            self._check_branches(value, pattern)
        else:
            self._check_operator(value, pattern)
        self.agreed += 1

    def fits(self, value: Value, pattern: Pattern) -> bool:
        """Whether `value` is as `pattern` says; where it is not, no name stands for more."""
        before = dict(self.bound)
        try:
            self.check(value, pattern)
        except DiffersError:
            self.bound = before
            return False
        return True

    def _check_zeros(self, value: Value) -> None:
        stored = value.constant
        fine = stored is not None and stored.ndim == 2 and len(stored) == 1
        _agree(fine and not bool(torch.any(stored)), value, str(ZEROS))  # type: ignore[arg-type]
        assert stored is not None
        self.widths.add(stored.shape[1])

    def _check_operator(self, value: Value, pattern: Op) -> None:
        step = value.step
        fine = step is not None and step.op == pattern.op and step.outputs == (value.name,)
        _agree(fine, value, str(pattern))
        assert step is not None
        given = dict(step.attributes)
        wanted = pattern.inputs
        if "axes" in given and len(wanted) == 2:  # before opset 18, reductions have no such input
            _agree(given.pop("axes") == [wanted[1]], value, f"{pattern} over axis {wanted[1]}")
            wanted = wanted[:1]
        usual = _DEFAULTS.get(step.op, {})
        expected = {**usual, **pattern.attributes}
        _agree({**usual, **given} == expected, value, f"{pattern} with {expected}")
        inputs = list(step.inputs)
        while inputs and not inputs[-1]:
            inputs.pop()
        fine = len(inputs) == len(wanted) and all(inputs)
        _agree(fine, value, f"{pattern} of {len(wanted)} inputs")
        for name, part in zip(inputs, wanted, strict=True):
            self.check(value.scope.find(name), part)

    def _check_branches(self, value: Value, pattern: Branches) -> None:
        step = value.step
        fine = step is not None and step.op == "If" and step.outputs == (value.name,)
        _agree(fine, value, str(pattern))
        assert step is not None
        self.check(value.scope.find(step.input(0)), pattern.condition)
        for name, wanted in (("then_branch", pattern.then), ("else_branch", pattern.other)):
            branch = step.attributes[name]
            self.check(value.scope.branch(branch).find(branch.outputs[0]), wanted)


def _agree(fine: bool, value: Value, expected: str) -> None:
    if not fine:
        raise DiffersError(f"{value} stands where {expected} is expected")


def _is_number(value: Value, number: int) -> bool:
    while value.step is not None and value.step.op == "CastLike":
        value = value.scope.find(value.step.input(0))
    stored = value.constant
    return stored is not None and stored.numel() == 1 and bool(stored == number)
