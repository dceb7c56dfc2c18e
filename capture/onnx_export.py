"""From an artifact to an ONNX file: the captured program, with a symbolic batch, proved.

The file is written by torch's own exporter, after lookups of bags of one length became a `Gather`
and a reduction: torch would write a loop over the bags, which runs a hundred times slower. Jagged
bags are left to it, as loops that `load_onnx` reads as bags again.

The file takes what the captured model took: user inputs have a row for each candidate.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from recreplay.capture.division import division_of
from recreplay.capture.ingest import dynamic_shapes
from recreplay.capture.program_file import read_program
from recreplay.capture.quiet_libraries import only_from
from recreplay.capture.user_side import for_eager
from recreplay.runtime.artifact import SELFTEST, open_artifact, stored_request
from recreplay.runtime.closeness import all_close, column_scale, firm_part
from recreplay.runtime.errors import CaptureError, ParityError
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.spec import InputSpec

aten = torch.ops.aten
OPSET = 20
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_POOLINGS = {0: aten.sum.dim_IntList, 1: aten.mean.dim, 2: aten.amax.default}


def export_onnx(artifact: str | Path, out: str | Path) -> dict[str, float]:
    """Write the program of `artifact` to the ONNX file `out`.

    Checked by onnx, and by ONNX Runtime against the requests and answers that the artifact stores;
    returns the largest difference by output. Tables beyond protobuf's limit go into `out` + `.data`
    beside it. Raises `CaptureError` or `ParityError`; nothing is written then.
    """
    target = Path(out)
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise CaptureError(
            f"exporting needs onnx, onnxscript and onnxruntime ({error}): pip install "
            "'recreplay[onnx]'"
        ) from error
    opened = open_artifact(artifact)
    _refuse_lowered(opened.manifest)
    module = read_program(opened)
    _prepare_inputs(module, opened.manifest.model_inputs)
    spread_bags(module)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        made = Path(folder) / target.name
        _export(module, opened.manifest, made)
        try:
            onnx.checker.check_model(str(made), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise CaptureError(
                f"torch.onnx wrote {opened.manifest.model} as a model that onnx refuses: "
                f"{str(error).strip().splitlines()[0]}; nothing was written"
            ) from error
        worst = _compare(onnxruntime, made, opened.path / SELFTEST, opened.manifest)
        for file in sorted(Path(folder).iterdir(), reverse=True):  # data first, then who reads it
            os.replace(file, target.parent / file.name)
    return worst


def _refuse_lowered(manifest: Manifest) -> None:
    if manifest.max_error is not None:
        raise CaptureError(
            f"{manifest.model} was captured with precision {manifest.precision!r} and table "
            f"precision {manifest.table_precision!r}, and the artifact does not hold its float32 "
            "weights any more; capture it with fp32 for both and export that"
        )


def spread_bags(module: fx.GraphModule) -> None:
    """Rewrite `embedding_bag` of bags of one length as a lookup and a reduction, in place.

    What is left of them reads int64: torch's exporter puts int64 beside ids and offsets.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not aten.embedding_bag.padding_idx:
            continue
        table, ids, offsets, *rest = node.args
        _, mode, _, weights, last, padding = (*rest, *(False, 0, False, None, False, None))[:6]
        readers = list(node.users)
        length = _length(offsets)
        plain = not weights and not last and padding is None and mode in _POOLINGS
        if length is None or not plain or any(r.args[1] != 0 for r in readers):
            _widen_bag(node)
            continue
        with graph.inserting_before(node):
            bags = graph.call_function(aten.reshape.default, (ids, [-1, length]))
            rows = graph.call_function(aten.embedding.default, (table, bags))
            pooled = graph.call_function(_POOLINGS[mode], (rows, [1]))
        for reader in readers:
            reader.replace_all_uses_with(pooled)
            graph.erase_node(reader)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()


def _widen_bag(bag: fx.Node) -> None:
    for at in (1, 2):
        with bag.graph.inserting_before(bag):
            bag.update_arg(at, _wide(bag.graph, bag.args[at]))


def _wide(graph: fx.Graph, whole: Any) -> fx.Node:
    """The whole numbers of a node as int64; a range, which is read back as one, by itself."""
    if whole.target is aten.arange.start_step:
        return graph.call_function(whole.target, whole.args, {**whole.kwargs, "dtype": torch.int64})
    return graph.call_function(aten.to.dtype, (whole, torch.int64))


def _length(offsets: Any) -> int | None:
    """The length of bags that begin at `arange(0, n, length)`."""
    if not isinstance(offsets, fx.Node) or offsets.target is not aten.arange.start_step:
        return None
    start, _, *step = offsets.args
    return step[0] if start == 0 and step and isinstance(step[0], int) else None


def _prepare_inputs(module: fx.GraphModule, inputs: Sequence[InputSpec]) -> None:
    """Without the input that says the user of each row, which the model itself does not have."""
    graph = module.graph
    for node, spec in zip(list(graph.find_nodes(op="placeholder")), inputs, strict=True):
        if spec.kind == "index":
            graph.erase_node(node)
    module.recompile()


def _example(spec: InputSpec, inputs: Sequence[InputSpec]) -> torch.Tensor:
    """Three rows of zeros; where they are jagged, of 1, 2 and at least 3 values."""
    dtype = getattr(torch, spec.dtype)
    by = spec.along or spec.name
    # Each group has a number of values of its own, as torch.export may take equal ones for one.
    lengths = torch.tensor([1, 2, 3 + [i.name for i in inputs].index(by)])
    if spec.kind == "values":
        return torch.zeros(int(lengths.sum()), dtype=dtype)
    if spec.kind in ("rows", "mask"):
        return torch.zeros((3, *spec.row), dtype=dtype)
    return division_of(spec, lengths).to(dtype)


def _export(module: fx.GraphModule, manifest: Manifest, out: Path) -> None:
    inputs = {spec.name: spec for spec in manifest.model_inputs if spec.kind != "index"}
    examples = tuple(_example(spec, manifest.model_inputs) for spec in inputs.values())
    # What torch's exporter and its helpers log needs no doing.
    exporters = only_from(logging.ERROR, "torch.onnx", "onnxscript", "onnx_ir")
    with warnings.catch_warnings(), exporters:
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                module, examples, dynamic_shapes=tuple(dynamic_shapes(inputs))
            )
            exported = torch.onnx.export(
                program,
                examples,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            raise CaptureError(
                f"torch.onnx cannot export {manifest.model}: {_said(error)}; nothing was written"
            ) from error
    assert exported is not None
    _name(exported.model.graph, list(inputs), [spec.name for spec in manifest.outputs])
    exported.save(str(out))


def _said(error: BaseException) -> str:
    """The first line of what is behind an error, which torch tells with steps and colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = _COLOURS.sub("", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _name(graph: Any, inputs: list[str], outputs: list[str]) -> None:
    """Give inputs and outputs their names, and values that torch named so others."""
    wanted = {*inputs, *outputs}
    values = [value for node in graph for value in node.outputs]
    names = {value.name for value in values}
    for value in values:
        if value.name in wanted:
            others = (f"{value.name}_{number}" for number in count(1))
            value.name = next(name for name in others if name not in names | wanted)
            names.add(value.name)
    for values, given in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for value, name in zip(values, given, strict=True):
            value.name = name


def _compare(runtime: Any, model: Path, requests: Path, manifest: Manifest) -> dict[str, float]:
    from safetensors.torch import load_file

    try:
        session = runtime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    except Exception as error:  # of a type of its own for each status
        raise CaptureError(
            f"ONNX Runtime, by which an export is checked, cannot run the model: {_said(error)}; "
            "nothing was written"
        ) from error
    stored = load_file(requests)
    names = [spec.name for spec in manifest.outputs]
    worst = dict.fromkeys(names, 0.0)
    for parity in manifest.parity:
        size = parity.bucket
        asked = stored_request(stored, size)
        request = for_eager(manifest.model_inputs, asked, size)
        taken = {i.name for i in session.get_inputs()}
        answers = session.run(names, {k: v.numpy() for k, v in request.items() if k in taken})
        for name, got in zip(names, answers, strict=True):
            want = stored[f"{size}/out/{name}"].numpy()
            got = firm_part(stored, size, name, got)
            gap = float(np.max(np.abs(got.astype(np.float64) - want), initial=0.0))
            worst[name] = max(worst[name], gap)
            if not all_close(got, want, parity.rtol, parity.atol, column_scale(want)):
                raise ParityError(
                    f"the exported model differs by {gap:.3g} in output {name!r} at batch {size} "
                    f"under ONNX Runtime (rtol {parity.rtol} of its scale, atol {parity.atol}); "
                    "nothing was written"
                )
    return worst
