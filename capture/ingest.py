"""From a model to one ATen program with a dynamic batch and named inputs, or a refusal that
helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._sympy.numbers import int_oo

from recreplay.capture.arguments import (
    Example,
    check_rows,
    check_tensors,
    example_of,
    forward_arguments,
    name_outputs,
    named_leaves,
    named_positions,
)
from recreplay.capture.attention_paths import attention_as_exported, fast_path_note
from recreplay.capture.declared import Declared, Jagged, declare, jagged_of
from recreplay.capture.functional import functional
from recreplay.capture.jagged_axis import check_jagged
from recreplay.capture.model_checks import check_model
from recreplay.capture.refusals import refuse_operators
from recreplay.capture.single_row import of_any_rows
from recreplay.capture.tracing import trace
from recreplay.runtime.errors import CaptureError, RecReplayError, UnsupportedModelError
from recreplay.runtime.spec import DTYPES, USER_INDEX, InputSpec, OutputSpec, RowMask


@dataclass(frozen=True)
class Ingested:
    """A model as one functional ATen graph whose batch is symbolic.

    `eager(inputs)` runs the original model on named tensors and gives its named outputs; it is what
    every bucket is verified against. Where there are several `users`, the last input is the index
    of users, which the model does not have.
    """

    name: str
    exported: ExportedProgram
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    example: dict[str, torch.Tensor]
    eager: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]
    users: int = 0  # the most users of a request; 0 where no input is a user's
    notes: tuple[str, ...] = ()  # what the owner of the model should know
    settled: frozenset[str] = frozenset()  # of its state, what decided how it is captured

    @property
    def row_mask(self) -> RowMask | None:
        found = ((at, spec) for at, spec in enumerate(self.inputs) if spec.kind == "mask")
        return next((RowMask(spec.name, at) for at, spec in found), None)


def ingest(
    model: torch.nn.Module | ExportedProgram,
    example_inputs: Example | None,
    *,
    jagged: Sequence[Jagged] | None = None,
    user_inputs: Sequence[str] = (),
    users: int = 1,
    row_mask: str | None = None,
) -> Ingested:
    """Export `model` with a dynamic batch.

    `example_inputs`: named tensors `{name: [B, ...]}`, or a tuple in the order of `forward`'s
    parameters; B must be 2 or more. A list or dict parameter `p` is given as `p_0`, `p_1`, … or
    `p_key`, or nested as `forward` takes it, which tells a list from a dict of such keys. Not
    needed for an `ExportedProgram` that carries its own. Inputs of `jagged` have a first dimension
    of their own, see `Jagged`; by default what the model's own `jagged_inputs`, a dict of values to
    offsets, says. `user_inputs` are given as if every row had a user of its own, as the model takes
    them; `users` is how many a request may have. `row_mask` is the input that says which rows
    are not padding.
    """

    def told(example: Mapping[str, torch.Tensor]) -> dict[str, Declared]:
        return declare(example, jagged_of(model, jagged), user_inputs, users, row_mask)

    if isinstance(model, ExportedProgram):
        return _with_users(_from_exported(model, example_inputs, told), users)
    check_model(model)
    if example_inputs is None:
        raise CaptureError(
            f"no example inputs for {type(model).__name__}: pass example_inputs, or give the model "
            "a method example_inputs(batch) that returns a dict of tensors"
        )
    arguments = forward_arguments(model, example_inputs)
    example = example_of(model, arguments)
    check_tensors(example)
    declared = told(example)
    batch = check_rows(example, declared)
    # torch.export takes one tensor given twice for one input.
    arguments = pytree.tree_map(torch.clone, arguments)
    nesting = pytree.tree_structure(arguments)  # names do not say it: `p_0` may be of a dict
    shapes = pytree.tree_unflatten(dynamic_shapes(declared), nesting)

    def outputs(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nested = pytree.tree_unflatten([inputs[name] for name in example], nesting)
        return name_outputs(model(**nested))

    def eager(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad(), attention_as_exported():
            return outputs(inputs)

    # Before it is exported: masks that a model keeps for the next call would be torch.export's.
    produced = _answer(eager, example)
    exported, settled = trace(model, arguments, shapes, batch)
    name = type(model).__name__
    made = _finish(name, exported, declared, example, eager, produced)
    note = fast_path_note(model, lambda: outputs(example), produced)
    notes = (*made.notes, *([note] if note else []))
    return _with_users(replace(made, notes=notes, settled=frozenset(settled)), users)


def _plain_tensors(exported: ExportedProgram) -> list[str]:
    """Floats that modules have as attributes, and not as parameters or buffers."""
    literal = "lifted_tensor_"  # what torch calls those that `forward` makes of numbers
    kind = torch.export.graph_signature.InputKind.CONSTANT_TENSOR
    found = [str(s.target) for s in exported.graph_signature.input_specs if s.kind == kind]
    kept = [name for name in found if not name.rpartition(".")[2].startswith(literal)]
    return [name for name in kept if exported.constants[name].is_floating_point()]


def dynamic_shapes(inputs: Mapping[str, Declared | InputSpec]) -> list[dict[int, Any]]:
    """Dimension 0 of each input: the batch, one more, or the number of values of a jagged group."""
    batch = Dim("batch", min=1)
    divisions = [name for name, i in inputs.items() if i.kind in ("offsets", "starts", "lengths")]
    totals = {name: Dim(f"values_{i}", min=1) for i, name in enumerate(divisions)}
    dims = {"values": lambda i: totals[i.along], "offsets": lambda i: batch + 1}
    return [{0: dims.get(i.kind, lambda i: batch)(i)} for i in inputs.values()]


def _with_users(model: Ingested, users: int) -> Ingested:
    if not any(spec.user for spec in model.inputs):
        return model
    index = (InputSpec(USER_INDEX, "int64", (), "index"),) if users > 1 else ()
    return replace(model, users=users, inputs=(*model.inputs, *index))


def load_pt2(path: str | Path) -> ExportedProgram:
    """A model saved by `torch.export.save`."""
    try:
        return torch.export.load(path)
    except Exception as error:
        raise CaptureError(
            f"{path} is not a program saved by torch.export.save that torch {torch.__version__} "
            f"reads: {error}"
        ) from error


def _from_exported(
    exported: ExportedProgram,
    example_inputs: Example | None,
    told: Callable[[Mapping[str, torch.Tensor]], dict[str, Declared]],
) -> Ingested:
    args_spec, kwargs_spec = exported.call_spec.in_spec.children()
    positional = [
        n
        for n, kind in _placeholders(exported)
        if kind == torch.export.graph_signature.InputKind.USER_INPUT
    ][: args_spec.num_leaves]
    names = [
        *positional,
        *named_leaves(
            pytree.tree_unflatten([torch.empty(0)] * kwargs_spec.num_leaves, kwargs_spec)
        ),
    ]
    if example_inputs is None:
        if exported.example_inputs is None:
            raise CaptureError(
                "the exported program carries no example inputs; pass example_inputs (--inputs)"
            )
        leaves = pytree.tree_leaves(exported.example_inputs)
        example = dict(zip(names, leaves, strict=True))
    else:
        given = (
            dict(example_inputs)
            if isinstance(example_inputs, Mapping)
            else dict(zip(names, named_positions(names, example_inputs), strict=True))
        )
        if set(given) != set(names):
            raise CaptureError(
                f"example inputs are named {sorted(given)}; the exported program takes {names}"
            )
        example = {n: given[n] for n in names}
    check_tensors(example)
    declared = told(example)
    check_rows(example, declared)
    module = exported.module()

    def eager(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        leaves = [inputs[n] for n in names]
        args, kwargs = pytree.tree_unflatten(leaves, exported.call_spec.in_spec)
        with torch.no_grad():
            return name_outputs(module(*args, **kwargs))

    produced = _answer(eager, example)
    return _finish("program", functional(exported), declared, example, eager, produced)


def _answer(
    eager: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]],
    example: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """What the model makes of its example inputs, which stay as they are."""
    try:
        return eager({name: tensor.clone() for name, tensor in example.items()})
    except RecReplayError:
        raise
    except Exception as error:
        raise CaptureError(
            f"the model itself fails on its example inputs: {type(error).__name__}: {error}; check "
            "their dtypes, and that ids are of rows that tables have"
        ) from error


def _finish(
    name: str,
    exported: ExportedProgram,
    declared: Mapping[str, Declared],
    example: dict[str, torch.Tensor],
    eager: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]],
    produced: Mapping[str, torch.Tensor],
) -> Ingested:
    refuse_operators(exported)
    signature = exported.graph_signature
    mutated = (
        signature.buffers_to_mutate
        or signature.parameters_to_mutate
        or signature.user_inputs_to_mutate
    )
    if mutated:
        raise UnsupportedModelError(
            f"the model writes to {', '.join(mutated.values())} during forward; a replay must "
            "be a function of its inputs, so keep such state outside the model"
        )
    inputs: list[InputSpec] = []
    symbols: set[str] = set()  # of the batch
    user = [
        node
        for node, (_, kind) in zip(exported.graph.nodes, _placeholders(exported), strict=False)
        if kind == torch.export.graph_signature.InputKind.USER_INPUT
    ]
    for (input_name, told), node in zip(declared.items(), user, strict=True):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise UnsupportedModelError(
                f"input {input_name!r} is a {type(value).__name__}; every input must be a tensor"
            )
        head, *row = value.shape
        if isinstance(head, int):
            raise UnsupportedModelError(
                f"input {input_name!r} has a fixed batch of {head}; export the model with "
                "dynamic_shapes={0: torch.export.Dim('batch', min=1)} for every input"
            )
        if any(not isinstance(d, int) for d in row):
            raise UnsupportedModelError(
                f"input {input_name!r} has shape {tuple(value.shape)}; only dimension 0, the "
                "batch, may vary"
            )
        if told.kind != "values":
            head = head - 1 if told.kind == "offsets" else head
            symbols.add(str(head))
        _check_range(exported, head)
        inputs.append(
            InputSpec(
                input_name,
                _dtype(value, f"input {input_name!r}"),
                tuple(row),
                told.kind,
                told.user,
                told.along,
                told.capacity,
            )
        )
    if len(symbols) > 1:
        raise UnsupportedModelError(
            f"inputs have different batch symbols ({', '.join(sorted(symbols))}); all must share "
            "one"
        )
    check_jagged(exported, user, declared)
    outputs = []
    batch = check_rows(example, declared)
    for output_name, tensor in produced.items():
        if not isinstance(tensor, torch.Tensor) or tensor.ndim == 0 or tensor.shape[0] != batch:
            got = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise UnsupportedModelError(
                f"output {output_name!r} is {got} for a batch of {batch}; expected [{batch}, ...], "
                "one row per row of the inputs"
            )
        outputs.append(
            OutputSpec(
                output_name, _dtype(tensor, f"output {output_name!r}"), tuple(tensor.shape[1:])
            )
        )
    notes = [
        f"tensor {plain} of the model is neither a parameter nor a buffer: it is captured as it "
        "is, and new weights do not change it, even if it was made of some"
        for plain in _plain_tensors(exported)
    ]
    if all(told.kind == "rows" for told in declared.values()):
        eager, alone = of_any_rows(eager, example, outputs)
        notes += [alone] if alone else []
    return Ingested(name, exported, tuple(inputs), tuple(outputs), example, eager, 0, tuple(notes))


def _check_range(exported: ExportedProgram, batch: torch.SymInt) -> None:
    allowed = exported.range_constraints.get(batch.node.expr)
    # A lower end of 2 is what Dim.DYNAMIC gives: it stands for 1 as well.
    if allowed is not None and (allowed.lower > 2 or allowed.upper != int_oo):
        raise UnsupportedModelError(
            f"the exported program is for batches of {allowed.lower} to {allowed.upper}; export it "
            "with torch.export.Dim('batch', min=1) and no largest size"
        )


def _dtype(tensor: torch.Tensor, what: str) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedModelError(
            f"{what} has dtype {name}; requests are numpy arrays, so it must be one of "
            f"{', '.join(DTYPES)}"
        )
    return name


def _placeholders(exported: ExportedProgram) -> list[tuple[str, Any]]:
    return [(s.arg.name, s.kind) for s in exported.graph_signature.input_specs]
