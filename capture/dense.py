"""Which operators go to a dense engine (TensorRT): floating-point arithmetic around products.

An engine is built for products of matrices and what can be fused into them. Lookups, ids and
whatever else is not plain floating-point arithmetic stay with the other compiler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch.utils import _pytree as pytree

from recreplay.capture.segments import SegmentCode
from recreplay.capture.views import is_view
from recreplay.runtime.aten import resolve, target_name
from recreplay.runtime.plan import Plan

PRODUCTS = frozenset(
    f"aten.{name}"
    for name in (
        *("linear.default", "mm.default", "addmm.default", "bmm.default", "baddbmm.default"),
        *("matmul.default", "convolution.default", "conv1d.default", "conv2d.default"),
    )
)
_AROUND = frozenset(
    f"aten.{name}"
    for name in (
        *("relu.default", "sigmoid.default", "tanh.default", "gelu.default", "silu.default"),
        *("leaky_relu.default", "elu.default", "softmax.int", "_softmax.default"),
        *("layer_norm.default", "add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar"),
        *("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar", "neg.default", "exp.default"),
        *("sqrt.default", "clamp.default", "cat.default", "sum.dim_IntList", "mean.dim"),
    )
)
DENSE = PRODUCTS | _AROUND
_FLOATS = {"float16", "float32"}


def dense_nodes(plan: Plan, nodes: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """The operators of a plan that an engine is to run.

    What comes one after the other on one stream runs in one engine; without a product in it, an
    engine gains nothing over a fused loop and is left out.
    """
    by_name = {node.name: node for node in nodes}
    runs: dict[int, list[fx.Node]] = {}
    chosen: set[fx.Node] = set()

    def close(stream: int) -> None:
        run = runs.pop(stream, [])
        if any(target_name(node.target) in PRODUCTS for node in run):
            chosen.update(run)

    for step in plan.steps:
        node = by_name[step.name]
        if _is_dense(node):
            runs.setdefault(step.stream, []).append(node)
        else:
            close(step.stream)
    for stream in list(runs):
        close(stream)
    return frozenset(chosen)


def is_dense(code: SegmentCode) -> bool:
    """Whether a segment is one that an engine is to run."""
    launching = [op for op in code.operators if not _moves_nothing(op.target)]
    return (
        all(op.target in DENSE for op in launching)
        and any(op.target in PRODUCTS for op in launching)
        and all(t.dtype in _FLOATS for t in (*code.inputs, *code.outputs))
    )


def chosen_segments(codes: Mapping[str, SegmentCode]) -> tuple[list[str], list[str]]:
    """Names of the codes that go to an engine, and of the rest."""
    engines = [key for key, code in codes.items() if is_dense(code)]
    return engines, [key for key in codes if key not in engines]


def _is_dense(node: fx.Node) -> bool:
    values = pytree.tree_leaves([node.meta["val"], *(n.meta["val"] for n in node.all_input_nodes)])
    dtypes = {str(v.dtype).removeprefix("torch.") for v in values if isinstance(v, torch.Tensor)}
    return target_name(node.target) in DENSE and dtypes <= _FLOATS


def _moves_nothing(target: str) -> bool:
    graph = fx.Graph()
    return is_view(graph.call_function(resolve(target)))
