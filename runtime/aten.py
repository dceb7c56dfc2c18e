"""ATen programs as plain JSON: the form in which eager segments and captured graphs are stored.

A program is a list of operators in execution order. Arguments are JSON values, or one of these:
`{"value": name}` (a tensor), `{"dtype": "float32"}`, `{"memory_format": "..."}`, `{"device":
true}` (the device that the segment runs on), `{"layout": "strided"}`, `{"float": "inf"}`,
`{"complex": "(1+2j)"}`. Only operators of the `aten` namespace, `getitem` and those
of our own that `_OWN` lists exist, so that loading one cannot run anything else.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import isfinite
from types import MappingProxyType
from typing import Any

import torch

from recreplay.runtime.errors import ArtifactCorruptError
from recreplay.runtime.in_place import writing_form

PACKED_LINEAR = "recreplay.packed_linear.default"
BYTE_BAGS = "recreplay.byte_bags.default"
ROW_BAGS = "recreplay.row_bags.default"
WEIGHTED_BAGS = "recreplay.weighted_bags.default"
JAGGED_BAGS = "recreplay.jagged_bags.default"
TOP_K = "recreplay.top_k.default"
GRU = "recreplay.gru.default"
LSTM = "recreplay.lstm.default"
ATTENTION = "recreplay.attention.default"
GROUPED_LOOKUP = "recreplay.grouped_lookup.default"
# Where each is defined when it is first needed: most programs have none.
_OWN = {
    PACKED_LINEAR: "packed_linear",
    BYTE_BAGS: "byte_bags",
    ROW_BAGS: "row_bags",
    WEIGHTED_BAGS: "row_bags",
    JAGGED_BAGS: "jagged_bags",
    TOP_K: "top_k",
    GRU: "recurrent",
    LSTM: "recurrent",
    ATTENTION: "attention",
    GROUPED_LOOKUP: "grouped_lookup",  # which looks for Triton
}
_MEMORY_FORMATS = {
    str(f): f for f in (torch.contiguous_format, torch.preserve_format, torch.channels_last)
}


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator: `name = target(*args, **kwargs)`, arguments encoded."""

    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def to_json(self) -> list[Any]:
        return [self.name, self.target, list(self.args), self.kwargs]

    @classmethod
    def from_json(cls, data: Any) -> Operator:
        name, target, args, kwargs = data
        return cls(str(name), str(target), tuple(args), dict(kwargs))

    def uses(self) -> list[str]:
        """Names of the tensors it reads, in argument order, repeats included."""
        found: list[str] = []

        def visit(arg: Any) -> None:
            if isinstance(arg, dict) and "value" in arg:
                found.append(arg["value"])
            elif isinstance(arg, (list, tuple)):
                for item in arg:
                    visit(item)

        visit([*self.args, *self.kwargs.values()])
        return found


def encode(arg: Any, name_of: Callable[[Any], str | None]) -> Any:
    """Encode one argument; `name_of` gives the name of a tensor value, or None for anything
    else."""
    name = name_of(arg)
    if name is not None:
        return {"value": name}
    if isinstance(arg, (list, tuple)):
        return [encode(a, name_of) for a in arg]
    if isinstance(arg, torch.dtype):
        return {"dtype": str(arg).removeprefix("torch.")}
    if isinstance(arg, torch.memory_format):
        return {"memory_format": str(arg)}
    if isinstance(arg, torch.device):
        return {"device": True}
    if isinstance(arg, torch.layout):
        return {"layout": str(arg)}
    if isinstance(arg, float) and not isfinite(arg):
        return {"float": repr(arg)}
    if isinstance(arg, complex):
        return {"complex": repr(arg)}
    if arg is None or isinstance(arg, (bool, int, float, str)):
        return arg
    raise TypeError(f"an argument of type {type(arg).__name__} cannot be stored: {arg!r}")


def decode(arg: Any, device: torch.device) -> Any:
    """Inverse of `encode` for anything but tensors and lists."""
    if not isinstance(arg, dict):
        return arg
    match arg:
        case {"dtype": str(name)}:
            return getattr(torch, name)
        case {"memory_format": str(name)}:
            return _MEMORY_FORMATS[name]
        case {"device": True}:
            return device
        case {"layout": _}:
            return torch.strided
        case {"float": str(text)}:
            return float(text)
        case {"complex": str(text)}:
            return complex(text)
    raise ArtifactCorruptError(f"unknown argument {arg!r} in a stored operator")


def rebuild(arg: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    """Inverse of `encode`, with `values` in the place of tensors by name."""
    if isinstance(arg, dict) and "value" in arg:
        return values[arg["value"]]
    if isinstance(arg, list):
        return [rebuild(a, values, device) for a in arg]
    return decode(arg, device)


def target_name(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    if str(target) in _OWN:
        return str(target)
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target)
    raise TypeError(f"{target} is not an ATen operator")


def resolve(target: str) -> Callable[..., Any]:
    """The callable of a stored operator name such as `aten.linear.default`."""
    if target == "getitem":
        return operator.getitem
    if target in _OWN:
        module = import_module(f"recreplay.runtime.{_OWN[target]}")
        own: Callable[..., Any] = getattr(module, f"{target.split('.')[1]}_operator")()
        return own
    namespace, _, rest = target.partition(".")
    packet, _, overload = rest.rpartition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if namespace != "aten" or not isinstance(found, torch._ops.OpOverload):
        raise ArtifactCorruptError(
            f"a stored segment calls {target!r}, which torch {torch.__version__} does not have; "
            "capture the model again with this torch"
        )
    return found


def bind(
    operators: Sequence[Operator],
    values: dict[str, torch.Tensor],
    outputs: Sequence[str],
    device: torch.device,
    into: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> Callable[[], list[torch.Tensor]]:
    """A function that runs `operators` over `values` and returns the tensors named `outputs`.

    Everything that does not change between calls (operators, names, constants) is resolved here. A
    value is dropped after its last use, so that the allocator hands out memory that is still warm.
    A value of `into` is that very tensor, written anew, where its operator can write it in place.
    """
    index = {name: i for i, name in enumerate(values)}
    for op in operators:
        index[op.name] = len(index)
    last_use = {
        index[name]: at for at, op in enumerate(operators) for name in [op.name, *op.uses()]
    }
    kept = {index[name] for name in [*values, *outputs]}

    def slot(arg: Any) -> Any:
        if isinstance(arg, dict) and "value" in arg:
            return _Slot(index[arg["value"]])
        if isinstance(arg, list):
            items = [slot(a) for a in arg]
            return _Slots(items) if any(isinstance(i, (_Slot, _Slots)) for i in items) else items
        return decode(arg, device)

    def step(at: int, op: Operator) -> tuple[Any, ...]:
        function = resolve(op.target)
        args = [slot(a) for a in op.args]
        kwargs = {k: slot(v) for k, v in op.kwargs.items()}
        if op.name in into and (form := writing_form(function, device.type)) is not None:
            function, kwargs = form, {**kwargs, "out": into[op.name]}
        dead = [i for i, last in last_use.items() if last == at and i not in kept]
        return function, args, kwargs, index[op.name], dead

    steps = [step(at, op) for at, op in enumerate(operators)]
    start: list[Any] = [*values.values(), *[None] * len(operators)]
    out = [index[name] for name in outputs]

    def run() -> list[torch.Tensor]:
        env = start.copy()
        for function, args, kwargs, target, dead in steps:
            env[target] = function(
                *[_fill(a, env) for a in args], **{k: _fill(v, env) for k, v in kwargs.items()}
            )
            for i in dead:
                env[i] = None
        return [env[i] for i in out]

    return run


class _Slot(int):
    """Position of a tensor in the environment."""


class _Slots(list[Any]):
    """A list argument that holds tensors."""


def _fill(arg: Any, env: list[Any]) -> Any:
    if type(arg) is _Slot:
        return env[arg]
    if type(arg) is _Slots:
        return [_fill(a, env) for a in arg]
    return arg
