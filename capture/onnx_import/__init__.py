"""ONNX models as torch modules. Needs the extra `[onnx]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recreplay.runtime.errors import CaptureError

if TYPE_CHECKING:
    from recreplay.capture.onnx_import.module import OnnxModel


def load_onnx(path: str | Path) -> OnnxModel:
    """The model in an ONNX file of opset 13 or later, ready for `capture`.

    Older opsets are converted where onnx can. Lookups over offsets, as torch.onnx.export(dynamo=
    True) writes them, make their inputs jagged, which needs no declaration where the offsets are an
    input. Raises `CaptureError`: the file is damaged, its external data lies outside of its folder,
    or the model has something that cannot be captured.
    """
    try:
        import onnx  # noqa: F401
        import onnx_ir  # noqa: F401
    except ImportError as error:
        raise CaptureError(
            f"reading {path} needs the packages onnx and onnx-ir, which are not installed "
            f"({error}): pip install 'recreplay[onnx]'"
        ) from error
    from recreplay.capture.onnx_import.module import OnnxModel
    from recreplay.capture.onnx_import.reading import read_graph

    model = OnnxModel(read_graph(Path(path)))
    model.try_out()
    return model


__all__ = ["load_onnx"]
