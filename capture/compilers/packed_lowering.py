"""Teach inductor the linear layer over a packed weight that is an argument.

Its own lowering of the operator is for weights that it packed itself while freezing, and asserts
that the weight is a constant of the graph. Ours are arguments, packed when the artifact is loaded;
the operator takes both.
"""

from __future__ import annotations

from typing import Any

import torch


def register_packed_linear() -> None:
    """To be called once in a process that compiles, after which inductor calls the operator as it
    is."""
    # The import registers inductor's own, so that this one, later, is what counts.
    from torch._inductor import ir, mkldnn_ir, mkldnn_lowerings  # noqa: F401
    from torch._inductor.lowering import register_lowering

    @register_lowering(torch.ops.mkldnn._linear_pointwise.default, type_promotion_kind=None)
    def linear(x: Any, w: Any, b: Any, attr: str, scalars: Any, algorithm: str) -> Any:
        made: Any = mkldnn_ir.LinearUnary  # untyped
        return ir.TensorBox.create(made.create(x, w, b, attr, scalars, algorithm))
