"""The operators that an ONNX model may use, each as a function of torch."""

from recreplay.capture.onnx_import.call import Operator
from recreplay.capture.onnx_import.operators.activations import ACTIVATIONS
from recreplay.capture.onnx_import.operators.elementwise import ELEMENTWISE
from recreplay.capture.onnx_import.operators.indexing import INDEXING
from recreplay.capture.onnx_import.operators.lookups import LOOKUPS
from recreplay.capture.onnx_import.operators.microsoft import MICROSOFT
from recreplay.capture.onnx_import.operators.normalisation import NORMALISATION
from recreplay.capture.onnx_import.operators.products import PRODUCTS
from recreplay.capture.onnx_import.operators.recurrent import RECURRENT
from recreplay.capture.onnx_import.operators.reductions import REDUCTIONS
from recreplay.capture.onnx_import.operators.shapes import SHAPES

OPERATORS: dict[str, Operator] = {
    **ELEMENTWISE,
    **ACTIVATIONS,
    **SHAPES,
    **INDEXING,
    **REDUCTIONS,
    **PRODUCTS,
    **NORMALISATION,
    **RECURRENT,
    **MICROSOFT,
    **LOOKUPS,
}
# What a model may name; the passes make the others.
SUPPORTED = tuple(sorted(name for name in OPERATORS if not name.startswith("recreplay::")))

__all__ = ["OPERATORS", "SUPPORTED"]
