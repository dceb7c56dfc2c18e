"""From a file to a checked graph. The file may be anything at all: it is data, never trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recreplay.capture.onnx_import.graph import Graph, from_ir
from recreplay.runtime.errors import CaptureError, RecReplayError, UnsupportedModelError

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

OLDEST_OPSET = 13  # older models are converted to it
_PROTOBUF_LIMIT = 2**31 - 1  # bytes


def read_graph(path: Path) -> Graph:
    """The graph of an ONNX file: parsed, checked, functions inlined, opset 13 or later."""
    model = _parse(path)
    _check_external_data(model, path)
    return to_graph(_converted(model, path), path, checked_as=str(path))


def to_graph(model: ModelProto, path: Path, checked_as: Any = None) -> Graph:
    """The graph of a parsed model. `path` names it in errors and says where external data lies."""
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import InlinePass

    try:
        onnx.checker.check_model(model if checked_as is None else checked_as)
        intermediate = onnx_ir.from_proto(model)
        onnx_ir.external_data.set_base_dir(intermediate.graph, path.absolute().parent)
        intermediate = InlinePass()(intermediate).model
        opset = {("" if k == "ai.onnx" else k): v for k, v in intermediate.opset_imports.items()}
        return from_ir(intermediate.graph, opset)
    except RecReplayError:
        raise
    except Exception as error:  # whatever a damaged model makes these libraries raise
        raise CaptureError(f"{path} is not a valid ONNX model: {_first_line(error)}") from error


def _parse(path: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise CaptureError(f"no file at {path}")
    size = path.stat().st_size
    if size > _PROTOBUF_LIMIT:
        raise CaptureError(
            f"{path} has {size:,} bytes; protobuf ends at {_PROTOBUF_LIMIT:,}, so save the model "
            "with external data (onnx.save_model(..., save_as_external_data=True))"
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, OSError, RuntimeError) as error:
        raise CaptureError(
            f"{path} is not an ONNX model, or is truncated or damaged: {_first_line(error)}"
        ) from error
    if not model.ir_version or not model.HasField("graph"):
        raise CaptureError(
            f"{path} is not an ONNX model, or is truncated: it has no "
            f"{'graph' if model.ir_version else 'IR version'}"
        )
    return model


def _converted(model: ModelProto, path: Path) -> ModelProto:
    import onnx

    versions = {o.domain: o.version for o in model.opset_import}
    version = versions.get("", versions.get("ai.onnx"))
    if version is None or version == 0:
        raise CaptureError(f"{path} does not say which opset of ONNX it is written in")
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise UnsupportedModelError(
            f"{path} is written in opset {version}; onnx {onnx.__version__} knows opsets up to "
            f"{newest}: export it in an older opset, or install a newer onnx"
        )
    if version >= OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except Exception as error:
        raise UnsupportedModelError(
            f"{path} is written in opset {version}, and onnx cannot convert it to opset "
            f"{OLDEST_OPSET}: {_first_line(error)}; export it in opset {OLDEST_OPSET} or later"
        ) from error


def _check_external_data(model: ModelProto, path: Path) -> None:
    """Refuse tensors whose bytes lie anywhere but in a plain file below the model's folder."""
    import onnx

    folder = path.absolute().parent.resolve()
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        what = f"{path}: tensor {tensor.name!r}"
        location = entries.get("location", "")
        if not location or "\0" in location:
            raise CaptureError(f"{what} is external and names no file")
        file = folder / location
        if Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
            raise CaptureError(
                f"{what} takes its data from {location!r}, outside of the model's folder {folder}; "
                "external data must lie beside the model"
            )
        if not file.is_file():
            raise CaptureError(f"{what} takes its data from {file}, which is no file")
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
        except ValueError:
            raise CaptureError(f"{what}: the place of its data in {file} is no number") from None
        size = file.stat().st_size
        if offset < 0 or length < 0 or offset + length > size:
            raise CaptureError(
                f"{what} takes bytes {offset:,} to {offset + length:,} of {file}, which has "
                f"{size:,}: it is truncated, or belongs to another model"
            )


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        yield from _tensors(inner)


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
