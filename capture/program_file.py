"""The captured program in an artifact: one graph with a symbolic batch, before any rewrite.

Nothing is replayed from it; it is what an artifact is exported from. It holds names of weights,
not weights: those are in the artifact already.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from recreplay.capture.ingest import Ingested
from recreplay.capture.writer import save_tensors
from recreplay.runtime.artifact import WEIGHTS, Artifact
from recreplay.runtime.aten import encode, rebuild, resolve, target_name
from recreplay.runtime.errors import ArtifactCorruptError, CaptureError
from recreplay.runtime.weights import load_tensors, with_views

PROGRAM = "program.json"
CONSTANTS = "program.safetensors"  # what the model's code holds as tensors, if it does
_ON_SIZES: dict[str, Callable[..., Any]] = {
    f"operator.{function.__name__}": function
    for function in (
        *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod),
        *(operator.neg, operator.truediv, operator.pow),
    )
}


def write_program(folder: Path, model: Ingested) -> None:
    """Write the file, or why this program cannot be stored; sealing takes its digest."""
    try:
        data, constants = _to_json(model)
    except TypeError as error:
        data, constants = {"problem": str(error)}, {}
    (folder / PROGRAM).write_text(json.dumps(data, separators=(",", ":")))
    if constants:
        save_tensors(folder / CONSTANTS, constants)


def read_program(artifact: Artifact) -> fx.GraphModule:
    """The program as a module: tensors in the manifest's order in, a tuple of outputs out.

    Raises `CaptureError` where the artifact has none.
    """
    path = artifact.path / PROGRAM
    if PROGRAM not in artifact.manifest.files:
        raise CaptureError(
            f"{artifact.path} was captured without {PROGRAM}, so that it cannot be exported; "
            "capture the model again"
        )
    data = json.loads(path.read_text())
    if "problem" in data:
        raise CaptureError(f"{artifact.path} cannot be exported: {data['problem']}")
    try:
        return _to_module(artifact, data)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ArtifactCorruptError(f"{path} is not a stored program: {error!r}") from error


def _to_json(model: Ingested) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    exported = model.exported
    specs = iter(exported.graph_signature.input_specs)
    given = iter(model.inputs)
    sources: dict[str, list[str]] = {}
    constants: dict[str, torch.Tensor] = {}
    operators: list[list[Any]] = []
    results: list[Any] = []

    def name_of(arg: Any) -> str | None:
        return arg.name if isinstance(arg, fx.Node) else None

    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = next(specs)
            if spec.kind == InputKind.USER_INPUT:
                sources[node.name] = ["input", next(given).name]
            elif spec.kind == InputKind.CONSTANT_TENSOR:
                constants[spec.target] = exported.constants[spec.target]
                sources[node.name] = ["constant", spec.target]
            else:
                sources[node.name] = ["weight", spec.target]
        elif node.op == "call_function":
            args = [encode(a, name_of) for a in node.args]
            kwargs = {k: encode(v, name_of) for k, v in node.kwargs.items()}
            operators.append([node.name, _name(node.target), args, kwargs])
        elif node.op == "output":
            kinds = [s.kind.name for s in exported.graph_signature.output_specs]
            leaves = pytree.tree_leaves(node.args)
            results = [a for a, kind in zip(leaves, kinds, strict=True) if kind == "USER_OUTPUT"]
    return {
        "sources": sources,
        "operators": operators,
        "outputs": [encode(r, name_of) for r in results],
    }, constants


def _name(target: Any) -> str:
    for name, function in _ON_SIZES.items():
        if target is function:
            return name
    return target_name(target)


def _to_module(artifact: Artifact, data: dict[str, Any]) -> fx.GraphModule:
    cpu = torch.device("cpu")
    weights = with_views(load_tensors(artifact.path / WEIGHTS, cpu), artifact.manifest.tables)
    path = artifact.path / CONSTANTS
    constants = load_tensors(path, cpu) if path.is_file() else {}
    root = torch.nn.Module()
    graph = fx.Graph()
    values: dict[str, fx.Node] = {}
    wanted = {source: value for value, (kind, source) in data["sources"].items() if kind == "input"}
    for at, spec in enumerate(artifact.manifest.model_inputs):
        node = graph.placeholder(f"input_{at}")
        if spec.name in wanted:
            values[wanted[spec.name]] = node
    for value, (kind, source) in data["sources"].items():
        if kind == "input":
            continue
        found = (weights if kind == "weight" else constants).get(source)
        if found is None:
            continue  # a weight that no operator reads is not stored
        buffer = f"{kind}_{len(values)}"
        root.register_buffer(buffer, found)
        values[value] = graph.get_attr(buffer)

    for name, target, args, kwargs in data["operators"]:
        function = _ON_SIZES.get(target) or resolve(target)
        values[name] = graph.call_function(
            function,
            tuple(rebuild(a, values, cpu) for a in args),
            {k: rebuild(v, values, cpu) for k, v in kwargs.items()},
        )
    graph.output(tuple(rebuild(a, values, cpu) for a in data["outputs"]))
    graph.eliminate_dead_code()
    module = fx.GraphModule(root, graph)
    module.eval()
    return module
