"""From an artifact to an ONNX file: the captured program, with a symbolic batch, proved.

The file is written by torch's own exporter, after lookups of bags of one length became a `Gather`
and a reduction: torch would write a loop over the bags, which runs a hundred times slower.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from recreplay.capture.program_file import read_program
from recreplay.runtime.artifact import SELFTEST, open_artifact
from recreplay.runtime.errors import CaptureError, ParityError
from recreplay.runtime.manifest import Manifest

aten = torch.ops.aten
OPSET = 20
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
    module = read_program(opened)
    spread_bags(module)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        made = Path(folder) / target.name
        _export(module, opened.manifest, made)
        onnx.checker.check_model(str(made), full_check=True)
        worst = _compare(onnxruntime, made, opened.path / SELFTEST, opened.manifest)
        for file in sorted(Path(folder).iterdir(), reverse=True):  # data first, then who reads it
            os.replace(file, target.parent / file.name)
    return worst


def spread_bags(module: fx.GraphModule) -> None:
    """Rewrite `embedding_bag` of bags of one length as a lookup and a reduction, in place."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not aten.embedding_bag.padding_idx:
            continue
        table, ids, offsets, *rest = node.args
        _, mode, _, weights, last, padding = (*rest, *(False, 0, False, None, False, None))[:6]
        readers = list(node.users)
        length = _length(offsets)
        plain = not weights and not last and padding in (None, -1) and mode in _POOLINGS
        if length is None or not plain or any(r.args[1] != 0 for r in readers):
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


def _length(offsets: Any) -> int | None:
    """The length of bags that begin at `arange(0, n, length)`."""
    if not isinstance(offsets, fx.Node) or offsets.target is not aten.arange.start_step:
        return None
    start, _, *step = offsets.args
    return step[0] if start == 0 and step and isinstance(step[0], int) else None


def _export(module: fx.GraphModule, manifest: Manifest, out: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    examples = tuple(
        torch.zeros((3, *spec.row), dtype=getattr(torch, spec.dtype)) for spec in manifest.inputs
    )
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                module, examples, dynamic_shapes=tuple({0: batch} for _ in examples)
            )
            exported = torch.onnx.export(
                program,
                examples,
                input_names=[spec.name for spec in manifest.inputs],
                output_names=[spec.name for spec in manifest.outputs],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise CaptureError(
                f"torch.onnx cannot export {manifest.model}: {lines[0]}; nothing was written"
            ) from error
    assert exported is not None
    exported.save(str(out))


def _compare(runtime: Any, model: Path, requests: Path, manifest: Manifest) -> dict[str, float]:
    from safetensors.numpy import load_file

    session = runtime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    stored = load_file(requests)
    names = [spec.name for spec in manifest.outputs]
    worst = dict.fromkeys(names, 0.0)
    for parity in manifest.parity:
        size = parity.bucket
        request = {s.name: stored[f"{size}/in/{s.name}"] for s in manifest.inputs}
        taken = {i.name for i in session.get_inputs()}
        answers = session.run(names, {k: v for k, v in request.items() if k in taken})
        for name, got in zip(names, answers, strict=True):
            want = stored[f"{size}/out/{name}"]
            gap = float(np.max(np.abs(got.astype(np.float64) - want), initial=0.0))
            worst[name] = max(worst[name], gap)
            if not np.allclose(got, want, parity.rtol, parity.atol, equal_nan=True):
                raise ParityError(
                    f"the exported model differs by {gap:.3g} in output {name!r} at batch {size} "
                    f"under ONNX Runtime (rtol {parity.rtol}, atol {parity.atol}); nothing was "
                    "written"
                )
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter logs about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
