"""Names of inputs and outputs: between flat dicts of tensors and the parameters of `forward`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from recreplay.capture.declared import Declared
from recreplay.runtime.errors import CaptureError, UnsupportedModelError

Example = Mapping[str, torch.Tensor] | Sequence[Any]


class NamedInputs(torch.nn.Module):
    """A module whose `forward` takes one list of tensors, which have names of their own.

    Names of parameters have to be identifiers of Python; those of other formats need not be.
    """

    def __init__(self, input_names: tuple[str, ...]) -> None:
        super().__init__()
        self.input_names = input_names


def forward_arguments(model: torch.nn.Module, example: Example) -> dict[str, Any]:
    """Keyword arguments of `forward` from flat named tensors, or from a tuple in its order."""
    if isinstance(model, NamedInputs):
        return {"inputs": _in_order(model, example)}
    every = list(inspect.signature(model.forward).parameters.values())
    parameters = [p for p in every if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not isinstance(example, Mapping):
        if len(example) > len(parameters):
            _refuse_unnamed(model, every, parameters)
            raise CaptureError(
                f"{len(example)} example inputs for "
                f"forward({', '.join(p.name for p in parameters)})"
            )
        absent = [p.name for p in parameters[len(example) :] if p.default is p.empty]
        if absent:
            raise CaptureError(
                f"no example input for parameter {absent[0]!r} of {type(model).__name__}.forward; "
                f"given: the first {len(example)}"
            )
        return {p.name: value for p, value in zip(parameters, example, strict=False)}
    arguments: dict[str, Any] = {}
    rest = dict(example)
    for p in parameters:
        if p.name in rest:
            arguments[p.name] = rest.pop(p.name)
            continue
        parts = {k.removeprefix(f"{p.name}_"): k for k in rest if _owner(k, parameters) == p.name}
        if parts:
            # Keys of a dict may be numbers too, but those of a list are all that there can be.
            indexed = {*parts} == {str(i) for i in range(len(parts))}
            values = {k: rest.pop(full) for k, full in parts.items()}
            arguments[p.name] = [values[k] for k in sorted(values, key=int)] if indexed else values
        elif p.default is p.empty:
            alone = len(parameters) == 1 and bool(example)
            hint = f"; if it is a dict of them, give {{{p.name!r}: {{...}}}}" if alone else ""
            raise CaptureError(
                f"no example input for parameter {p.name!r} of {type(model).__name__}.forward; "
                f"given: {', '.join(example) or 'nothing'}{hint}"
            )
    if rest:
        _refuse_unnamed(model, every, parameters)
        raise CaptureError(
            f"example inputs {sorted(rest)} fit no parameter of {type(model).__name__}.forward"
            f"({', '.join(p.name for p in parameters)})"
        )
    return arguments


def _refuse_unnamed(
    model: torch.nn.Module,
    every: Sequence[inspect.Parameter],
    named: Sequence[inspect.Parameter],
) -> None:
    """Say which parameters of `forward` are why an input has no place: `*ids` and the like."""
    others = [p for p in every if p not in named]
    if others:
        written = {p: str(p.replace(annotation=p.empty, default=p.empty)) for p in every}
        name, taken = type(model).__name__, ", ".join(written.values())
        raise CaptureError(
            f"inputs cannot be named by {', '.join(written[p] for p in others)} of "
            f"{name}.forward({taken}); "
            "capture a module around it that takes a list or a dict of tensors there and calls it"
        )


def _in_order(model: NamedInputs, example: Example) -> list[torch.Tensor]:
    names = model.input_names
    if not isinstance(example, Mapping):
        return named_positions(names, example)
    if set(example) != set(names):
        raise CaptureError(
            f"example inputs are named {sorted(example)}; the model takes {', '.join(names)}"
        )
    return [example[name] for name in names]


def _owner(name: str, parameters: Sequence[inspect.Parameter]) -> str | None:
    """The parameter that an example input belongs to: the longest whose name it begins with."""
    fits = (p.name for p in parameters if name == p.name or name.startswith(f"{p.name}_"))
    return max(fits, key=len, default=None)


def example_of(model: torch.nn.Module, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What `forward_arguments` nested, by flat names again."""
    if isinstance(model, NamedInputs):
        return dict(zip(model.input_names, arguments["inputs"], strict=True))
    return named_leaves(arguments)


def named_leaves(arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Flat names of nested arguments: `ids_0`, `ids_key`, in the order of torch's pytrees."""
    named = {}
    for path, leaf in pytree.tree_flatten_with_path(dict(arguments))[0]:
        keys = [_key(k) for k in path]
        name = "_".join(keys)
        if name in named:
            raise CaptureError(
                f"two example inputs are named {name!r}: names of nested ones are their keys, "
                "joined by '_'; give the keys of one other names"
            )
        named[name] = leaf
    return named


def _key(part: Any) -> str:
    """Of a dict, of a list or tuple, or of a named tuple."""
    return str(next(getattr(part, of) for of in ("key", "idx", "name") if hasattr(part, of)))


def named_positions(names: Sequence[str], example: Sequence[Any]) -> list[Any]:
    leaves = pytree.tree_leaves(list(example))
    if len(leaves) != len(names):
        raise CaptureError(
            f"{len(leaves)} example inputs; the exported program takes {len(names)}: "
            f"{', '.join(names)}"
        )
    return leaves


def check_tensors(example: Mapping[str, Any]) -> None:
    for name, tensor in example.items():
        if not isinstance(tensor, torch.Tensor):
            raise CaptureError(
                f"example input {name!r} is a {type(tensor).__name__}; expected a tensor [B, ...]"
            )
        if tensor.ndim == 0:
            raise CaptureError(f"example input {name!r} is a scalar; expected a tensor [B, ...]")


def check_rows(example: Mapping[str, torch.Tensor], declared: Mapping[str, Declared]) -> int:
    """The batch of the example inputs, which all must have."""
    batches = {
        name: t.shape[0] - (declared[name].kind == "offsets")
        for name, t in example.items()
        if declared[name].kind != "values"
    }
    if len(set(batches.values())) != 1:
        raise CaptureError(
            f"example inputs have different batch sizes: {batches}; all need the same number of "
            "rows, but for values of a varying number per row and their offsets or lengths, which "
            "have to be declared (jagged=, --jagged)"
        )
    batch = int(next(iter(batches.values())))
    if batch < 2:
        raise CaptureError(
            f"example inputs have batch {batch}; 2 or more is needed, because torch.export takes a "
            "size of 0 or 1 for a constant"
        )
    return batch


def name_outputs(result: Any) -> dict[str, torch.Tensor]:
    """Names of a model's outputs: `output`, `output_0` …, or the keys of a dict or named tuple."""
    if isinstance(result, torch.Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        named = {str(k): v for k, v in result.items()}
        if len(named) != len(result):
            raise UnsupportedModelError(
                f"outputs are named {list(result)}, of which several are the same as text; give "
                "each a name of its own"
            )
        return named
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return dict(zip(result._fields, result, strict=True))
    if isinstance(result, (tuple, list)):
        return {f"output_{i}": v for i, v in enumerate(result)}
    raise UnsupportedModelError(
        f"the model returns {type(result).__name__}; expected a tensor, a tuple or a dict of "
        "tensors"
    )
