"""In which precision a model is captured, and how far it may then be from the float32 model.

The trunk's matrix products read their operands in a lower type and give float32 on, as autocast
has it; whatever else a trunk does stays in float32. Tables may be stored in a lower type; what is
looked up is float32 from there on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch.utils import _pytree as pytree

from recreplay.capture.compilers.tensorrt import PRECISIONS as ENGINES
from recreplay.runtime.errors import CaptureError
from recreplay.runtime.lowered import INT8, Stored
from recreplay.runtime.processor import NATIVE

# Type that the operands of products are stored in and cast to, and the bound of errors: the
# largest error of an output over its largest size. Over the models of recreplay.models, bf16
# costs 0.0002 to 0.010; the others round to 2^-12 in place of 2^-9.
_TRUNK: dict[str, tuple[Stored | None, float]] = {
    "fp32": (None, 0.0),
    "tf32": (None, 0.005),
    "bf16": ("bfloat16", 0.02),
    "fp16": ("float16", 0.005),
}
# The same for tables: over those models float16 costs up to 0.0004, and 8 bits up to 0.006.
_TABLES: dict[str, tuple[Stored | None, float]] = {
    "fp32": (None, 0.0),
    "fp16": ("float16", 0.002),
    "int8": (INT8, 0.02),
}
TRUNK_PRECISIONS = tuple(_TRUNK)
CASTS = tuple(name for name, (kind, _) in _TRUNK.items() if kind is not None)
TABLE_PRECISIONS = tuple(_TABLES)


@dataclass(frozen=True)
class Precision:
    """`max_error`: the largest error of an output over its scale; None if nothing is lowered."""

    trunk: str = "fp32"
    tables: str = "fp32"
    max_error: float | None = None

    @property
    def products(self) -> Stored | None:
        """What operands of matrix products are cast to, if they are."""
        return _TRUNK[self.trunk][0]

    @property
    def rows(self) -> Stored | None:
        """What rows of tables are stored as, if not in float32."""
        return _TABLES[self.tables][0]

    def describe(self) -> str:
        return f"precision {self.trunk!r} and table precision {self.tables!r}"


FULL = Precision()


def rounding(graph: fx.Graph) -> float:
    """How far a replay may be from eager, over the size of an output, for what a model computes in
    itself: compiled code keeps between operators what eager rounds to half precision."""
    values = [v for node in graph.nodes for v in pytree.tree_leaves(node.meta.get("val"))]
    dtypes = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    if torch.bfloat16 in dtypes:
        return _TRUNK["bf16"][1]
    return _TRUNK["fp16"][1] if torch.float16 in dtypes else 1e-4


def choose_precision(
    trunk: str,
    tables: str,
    max_error: float | None,
    device: str,
    compiler: str,
    processor: str = NATIVE,
) -> Precision:
    """What was asked for, with the bound that is usual for it unless given.

    Raises `CaptureError` for what is not known, or not to be had on this device or kind of
    processor.
    """
    if trunk not in _TRUNK:
        known = ", ".join(TRUNK_PRECISIONS)
        raise CaptureError(f"unknown precision {trunk!r}; expected one of {known}")
    if tables not in _TABLES:
        known = ", ".join(TABLE_PRECISIONS)
        raise CaptureError(f"unknown table precision {tables!r}; expected one of {known}")
    if trunk == tables == "fp32":
        if max_error is not None:
            raise CaptureError(
                f"max_error {max_error:g} bounds what a lower precision costs, and nothing is "
                "lowered; give precision or table_precision, or leave it out (rtol and atol bound "
                "float32)"
            )
        return FULL
    if max_error is not None and not 0 < max_error < float("inf"):
        raise CaptureError(
            f"max_error is the largest error over the scale of an output, more than 0; got "
            f"{max_error:g}"
        )
    problem = _problem(trunk, device, processor)
    if problem is not None:
        raise CaptureError(f"precision {trunk!r} cannot be captured for {device!r}: {problem}")
    if compiler in ENGINES:
        raise CaptureError(
            f"compiler {compiler!r} has a precision of its own, which is part of its name; use "
            "compiler 'inductor' with precision and table_precision, or leave them out"
        )
    return Precision(trunk, tables, max_error or _TRUNK[trunk][1] + _TABLES[tables][1])


def _problem(trunk: str, device: str, processor: str) -> str | None:
    if device != "cpu":
        return None
    if trunk == "tf32":
        return "TF32 is a mode of CUDA's matrix units; on a CPU use fp32 or bf16"
    if trunk == "fp16":
        return (
            "torch multiplies float16 matrices by oneDNN on the few CPUs with AVX512-FP16 or "
            "AMX-FP16, and elsewhere slower than float32; on a CPU use bf16, and float16 for "
            "tables alone (table_precision 'fp16')"
        )
    if trunk == "bf16" and processor == "x86-64-v3":
        return f"oneDNN has bfloat16 products for AVX-512, which {processor} lacks; use fp32"
    if trunk == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 products for this CPU; use fp32"
    return None
