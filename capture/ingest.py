"""From a model to one ATen program with a dynamic batch and named inputs, or a refusal that
helps."""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._sympy.numbers import int_oo

from recreplay.runtime.errors import CaptureError, UnsupportedModelError
from recreplay.runtime.spec import DTYPES, InputSpec, OutputSpec

Example = Mapping[str, torch.Tensor] | Sequence[Any]


@dataclass(frozen=True)
class Ingested:
    """A model as one functional ATen graph whose batch is symbolic.

    `eager(inputs)` runs the original model on named tensors and gives its named outputs; it is what
    every bucket is verified against.
    """

    name: str
    exported: ExportedProgram
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    example: dict[str, torch.Tensor]
    eager: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]


def ingest(model: torch.nn.Module | ExportedProgram, example_inputs: Example | None) -> Ingested:
    """Export `model` with a dynamic batch.

    `example_inputs`: named tensors `{name: [B, ...]}`, or a tuple in the order of `forward`'s
    parameters; B must be 2 or more. A list or dict parameter `p` is given as `p_0`, `p_1`, … or
    `p_key`. Not needed for an `ExportedProgram` that carries its own.
    """
    if isinstance(model, ExportedProgram):
        return _from_exported(model, example_inputs)
    if model.training:
        raise CaptureError(
            f"{type(model).__name__} is in training mode, where dropout and batch statistics are "
            "not a function of the inputs alone; call model.eval() first"
        )
    if example_inputs is None:
        raise CaptureError(
            f"no example inputs for {type(model).__name__}: pass example_inputs, or give the model "
            "a method example_inputs(batch) that returns a dict of tensors"
        )
    arguments = forward_arguments(model, example_inputs)
    example = _named_leaves(arguments)
    batch = _check_example(example)
    # torch.export takes one tensor given twice for one input.
    arguments = pytree.tree_map(torch.clone, arguments)
    dynamic = Dim("batch", min=1)
    shapes = pytree.tree_map(lambda t: {0: dynamic}, arguments)
    with warnings.catch_warnings(), _LastCall() as last:
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(model, (), arguments, dynamic_shapes=shapes)
        except Exception as error:
            raise _refusal(error, last, batch) from error
        exported = exported.run_decompositions({})

    def eager(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return name_outputs(model(**forward_arguments(model, inputs)))

    return _finish(type(model).__name__, exported, list(example), example, eager)


def load_pt2(path: str | Path) -> ExportedProgram:
    """A model saved by `torch.export.save`."""
    try:
        return torch.export.load(path)
    except Exception as error:
        raise CaptureError(
            f"{path} is not a program saved by torch.export.save that torch {torch.__version__} "
            f"reads: {error}"
        ) from error


def name_outputs(result: Any) -> dict[str, torch.Tensor]:
    """Names of a model's outputs: `output`, `output_0` …, or the keys of a dict."""
    if isinstance(result, torch.Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        return {str(k): v for k, v in result.items()}
    if isinstance(result, (tuple, list)):
        return {f"output_{i}": v for i, v in enumerate(result)}
    raise UnsupportedModelError(
        f"the model returns {type(result).__name__}; expected a tensor, a tuple or a dict of "
        "tensors"
    )


def _from_exported(exported: ExportedProgram, example_inputs: Example | None) -> Ingested:
    args_spec, kwargs_spec = exported.call_spec.in_spec.children()
    positional = [
        n
        for n, kind in _placeholders(exported)
        if kind == torch.export.graph_signature.InputKind.USER_INPUT
    ][: args_spec.num_leaves]
    names = [
        *positional,
        *_named_leaves(
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
            else dict(zip(names, _positional(names, example_inputs), strict=True))
        )
        if set(given) != set(names):
            raise CaptureError(
                f"example inputs are named {sorted(given)}; the exported program takes {names}"
            )
        example = {n: given[n] for n in names}
    _check_example(example)
    module = exported.module()

    def eager(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        leaves = [inputs[n] for n in names]
        args, kwargs = pytree.tree_unflatten(leaves, exported.call_spec.in_spec)
        with torch.inference_mode():
            return name_outputs(module(*args, **kwargs))

    return _finish("program", exported.run_decompositions({}), names, example, eager)


def _positional(names: Sequence[str], example: Sequence[Any]) -> list[Any]:
    leaves = pytree.tree_leaves(list(example))
    if len(leaves) != len(names):
        raise CaptureError(
            f"{len(leaves)} example inputs; the exported program takes {len(names)}: "
            f"{', '.join(names)}"
        )
    return leaves


def _finish(
    name: str,
    exported: ExportedProgram,
    names: list[str],
    example: dict[str, torch.Tensor],
    eager: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> Ingested:
    _refuse_operators(exported)
    mutated = (
        exported.graph_signature.buffers_to_mutate or exported.graph_signature.user_inputs_to_mutate
    )
    if mutated:
        raise UnsupportedModelError(
            f"the model writes to {', '.join(mutated.values())} during forward; a replay must "
            "be a function of its inputs, so keep such state outside the model"
        )
    inputs: list[InputSpec] = []
    symbols: set[str] = set()
    user = [
        node
        for node, (_, kind) in zip(exported.graph.nodes, _placeholders(exported), strict=False)
        if kind == torch.export.graph_signature.InputKind.USER_INPUT
    ]
    for input_name, node in zip(names, user, strict=True):
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
        _check_range(exported, head)
        symbols.add(str(head))
        inputs.append(InputSpec(input_name, _dtype(value, f"input {input_name!r}"), tuple(row)))
    if len(symbols) > 1:
        raise UnsupportedModelError(
            f"inputs have different batch symbols ({', '.join(sorted(symbols))}); all must share "
            "one"
        )
    produced = eager(example)
    outputs = []
    batch = next(iter(example.values())).shape[0]
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
    return Ingested(name, exported, tuple(inputs), tuple(outputs), example, eager)


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


def forward_arguments(model: torch.nn.Module, example: Example) -> dict[str, Any]:
    """Keyword arguments of `forward` from flat named tensors, or from a tuple in its order."""
    parameters = [
        p
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if not isinstance(example, Mapping):
        if len(example) > len(parameters):
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
            indexed = all(k.isdecimal() for k in parts)
            values = {k: rest.pop(full) for k, full in parts.items()}
            arguments[p.name] = [values[k] for k in sorted(values, key=int)] if indexed else values
        elif p.default is p.empty:
            raise CaptureError(
                f"no example input for parameter {p.name!r} of {type(model).__name__}.forward; "
                f"given: {', '.join(example) or 'nothing'}"
            )
    if rest:
        raise CaptureError(
            f"example inputs {sorted(rest)} fit no parameter of {type(model).__name__}.forward"
            f"({', '.join(p.name for p in parameters)})"
        )
    return arguments


def _owner(name: str, parameters: Sequence[inspect.Parameter]) -> str | None:
    """The parameter that an example input belongs to: the longest whose name it begins with."""
    fits = (p.name for p in parameters if name == p.name or name.startswith(f"{p.name}_"))
    return max(fits, key=len, default=None)


def _named_leaves(arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    named = {}
    for path, leaf in pytree.tree_flatten_with_path(dict(arguments))[0]:
        keys = [str(getattr(k, "key", getattr(k, "idx", None))) for k in path]
        named["_".join(keys)] = leaf
    return named


def _check_example(example: Mapping[str, Any]) -> int:
    for name, tensor in example.items():
        if not isinstance(tensor, torch.Tensor):
            raise CaptureError(
                f"example input {name!r} is a {type(tensor).__name__}; expected a tensor [B, ...]"
            )
        if tensor.ndim == 0:
            raise CaptureError(f"example input {name!r} is a scalar; expected a tensor [B, ...]")
    batches = {name: t.shape[0] for name, t in example.items()}
    if len(set(batches.values())) != 1:
        raise CaptureError(
            f"example inputs have different batch sizes: {batches}; all need the same number of "
            "rows"
        )
    batch = int(next(iter(batches.values())))
    if batch < 2:
        raise CaptureError(
            f"example inputs have batch {batch}; 2 or more is needed, because torch.export takes a "
            "size of 0 or 1 for a constant"
        )
    return batch


_METADATA = {
    *("__get__", "__set__", "_set_grad_enabled", "size", "dim", "stride", "storage_offset"),
    *("numel", "element_size", "is_contiguous", "untyped_storage", "is_floating_point"),
}


class _LastCall(TorchFunctionMode):
    """Remembers the torch function that the model called last, to name it in a refusal."""

    def __init__(self) -> None:
        super().__init__()
        self.operator = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in _METADATA:
            self.operator = name
        return func(*args, **(kwargs or {}))


def _refusal(error: Exception, last: _LastCall, batch: int) -> UnsupportedModelError:
    text = str(error)
    where = _user_frame(error)
    if "data-dependent" in text.lower() or "unbacked" in text.lower():
        return UnsupportedModelError(
            f"the model branches or sizes a tensor on data (last operator: "
            f"{last.operator!r}{where}); a "
            "captured graph has fixed shapes, so compute with masks or a fixed capacity instead"
        )
    if "batch" in text and ("constraint" in text.lower() or "specialized" in text.lower()):
        return UnsupportedModelError(
            f"the model fixes its batch at the example's {batch}{where}; take sizes from the "
            f"input's shape instead. torch.export says: {_first_line(text)}"
        )
    return UnsupportedModelError(
        f"torch.export cannot trace the model (last operator: {last.operator!r}{where}): "
        f"{_first_line(text)}"
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def _user_frame(error: BaseException) -> str:
    """` at file:line: source` of the innermost frame that is not torch's."""
    inside = str(Path(torch.__file__).parent)
    found = ""
    chain: BaseException | None = error
    while chain is not None:
        for frame in traceback.extract_tb(chain.__traceback__):
            if not frame.filename.startswith((inside, "<", __file__)) and frame.line:
                found = f" at {frame.filename}:{frame.lineno}: {frame.line}"
        chain = chain.__cause__ or chain.__context__
    return found


def _refuse_operators(exported: ExportedProgram) -> None:
    """Refuse what exports but cannot be captured: sizes from data, chance, foreign code."""
    for node in exported.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise UnsupportedModelError(
                f"operator {node.target} runs one of several programs{_stack_line(node)}; a "
                "captured graph always runs the same one, so compute both and select by "
                "torch.where"
            )
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace != "aten":
            raise UnsupportedModelError(
                f"operator {node.target} is not one of torch's own{_stack_line(node)}; an artifact "
                "runs without your code, so write it with torch operators"
            )
        if node.meta.get("unbacked_bindings"):
            raise UnsupportedModelError(
                f"operator {node.target} has an output whose size or value depends on the data"
                f"{_stack_line(node)}; a captured graph has fixed shapes, so compute with masks "
                "or a fixed capacity instead"
            )
        if isinstance(node.target, torch._ops.OpOverload) and (
            torch.Tag.nondeterministic_seeded in node.target.tags
            and str(node.target) not in ("aten.dropout.default", "aten.rrelu.default")
        ):
            raise UnsupportedModelError(
                f"operator {node.target} draws random numbers{_stack_line(node)}; a replay must "
                "be a function of its inputs"
            )


def _stack_line(node: torch.fx.Node) -> str:
    """` at file:line: source` of the user's line that made this node."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
    for at in range(len(lines) - 1, -1, -1):
        if lines[at].startswith("File ") and not lines[at].startswith('File "<'):
            file, _, rest = lines[at].removeprefix('File "').partition('", line ')
            number = rest.partition(",")[0]
            source = lines[at + 1] if at + 1 < len(lines) else ""
            return f" at {file}:{number}: {source}"
    return ""
