"""Every operator that the importer claims, against ONNX's own node tests."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from recreplay.capture.onnx_import.execution import CONTROL
from recreplay.capture.onnx_import.module import OnnxModel
from recreplay.capture.onnx_import.operators import SUPPORTED
from recreplay.capture.onnx_import.reading import to_graph

# What fixes the shape or the operators of a captured graph has to be a constant there; the node
# tests give it as an input, so it is made one.
CONSTANT_INPUTS: dict[str, tuple[int, ...]] = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Dropout": (1, 2),
    "Expand": (1,),
    "GRU": (4,),
    "If": (0,),
    "LSTM": (4,),
    "Loop": (0, 1),
    "OneHot": (1,),
    "Pad": (1, 2, 3),
    "RNN": (4,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    **{
        f"Reduce{kind}": (1,)
        for kind in (
            *("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum"),
            "SumSquare",
        )
    },
}

COMPUTED = {
    *("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FLOAT16", "FLOAT", "DOUBLE"),
    "UNDEFINED",  # of optional inputs that are not given
}

# Name prefix of a node test -> why it is not run.
_TRAINING = "training, which draws random numbers or computes statistics of the batch"
_SEQUENCES = "sequences and optionals, which no static graph holds"
_FLOAT_SIZES = "a size that is computed in floats or given as data"
_FLOAT_TURNS = "a loop of a number of turns that is computed in floats"
SKIPPED: dict[str, str] = {
    "test_affine_grid": _FLOAT_SIZES,
    "test_batchnorm_epsilon_training": _TRAINING,
    "test_batchnorm_example_training": _TRAINING,
    "test_blackmanwindow": _FLOAT_SIZES,
    "test_center_crop_pad": _FLOAT_SIZES,
    "test_hammingwindow": _FLOAT_SIZES,
    "test_hannwindow": _FLOAT_SIZES,
    "test_identity_opt": _SEQUENCES,
    "test_identity_sequence": _SEQUENCES,
    "test_if_opt": _SEQUENCES,
    "test_if_seq": _SEQUENCES,
    "test_loop13_seq": _SEQUENCES,
    "test_loop16_seq_none": _SEQUENCES,
    "test_maxpool_2d_ceil": "ceil_mode of MaxPool",
    "test_maxpool_3d_dilations_use_ref_impl_large": "ceil_mode of MaxPool",
    "test_maxpool_with_argmax": "the indices of the largest as an output of MaxPool",
    "test_range_float16_type_positive_delta_expanded": _FLOAT_TURNS,
    "test_range_float_type_positive_delta_expanded": _FLOAT_TURNS,
    "test_range_int32_type_negative_delta_expanded": _FLOAT_TURNS,
    "test_reduce_max_empty": "the largest of nothing",
    "test_reduce_min_empty": "the smallest of nothing",
    "test_training_dropout": _TRAINING,
}


def with_constants(model: onnx.ModelProto, inputs: dict[str, Any]) -> onnx.ModelProto:
    """The model with the inputs that have to be constant as initialisers."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for node in fixed.graph.node:
        for at in CONSTANT_INPUTS.get(node.op_type, ()):
            name = node.input[at] if at < len(node.input) else ""
            if name in inputs:
                fixed.graph.initializer.append(numpy_helper.from_array(inputs.pop(name), name))
    kept = [i for i in fixed.graph.input if i.name in inputs]
    del fixed.graph.input[:]
    fixed.graph.input.extend(kept)
    return fixed


def as_array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def element_types(case: Any) -> set[str]:
    """Element types of inputs, outputs, constants and casts."""
    graph = case.model.graph
    found = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    for node in graph.node:
        found |= {a.i for a in node.attribute if a.name in ("to", "dtype")}
        found |= {a.t.data_type for a in node.attribute if a.HasField("t")}
    return {onnx.TensorProto.DataType.Name(code) for code in found}


def run_case(case: Any) -> None:
    for given, expected in case.data_sets:
        names = [i.name for i in case.model.graph.input]
        inputs = dict(zip(names, map(as_array, given), strict=False))
        model = with_constants(case.model, inputs)
        module = OnnxModel(to_graph(model, Path("node.onnx")))
        tensors = [torch.from_numpy(np.array(inputs[n])) for n in module.input_names]
        with torch.inference_mode():
            outputs = module(tensors)
        for want, got in zip(map(as_array, expected), outputs.values(), strict=True):
            assert got.dtype == torch.from_numpy(np.array(want)).dtype
            atol = 1e-3 if want.dtype == np.float16 else 1e-6
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-3, atol=max(case.atol, atol))
            assert tuple(got.shape) == np.shape(want)


def why_skipped(case: Any) -> str | None:
    if element_types(case) - COMPUTED:
        return "an element type that torch or numpy does not compute with"
    return next((v for k, v in SKIPPED.items() if case.name.startswith(k)), None)


def claimed(case: Any) -> bool:
    known = {*SUPPORTED, *CONTROL}
    nodes = case.model.graph.node
    return bool(nodes) and all(n.op_type in known and not n.domain for n in nodes)


def test_the_node_tests_of_onnx() -> None:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [c for c in collect_testcases(None) if claimed(c)]
    passed: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    failed = []
    for case in cases:
        operators = {n.op_type for n in case.model.graph.node}
        reason = why_skipped(case)
        if reason is not None:
            skipped[reason] += 1
            continue
        try:
            run_case(case)
        except Exception as error:
            failed.append(f"{case.name}: {type(error).__name__}: {str(error).strip()[:300]}")
        else:
            passed.update(operators)
    count = len(cases) - sum(skipped.values()) - len(failed)
    print(f"\n{count} of {len(cases)} node tests pass, {sum(skipped.values())} skipped")
    for reason, number in skipped.items():
        print(f"  {number} skipped: {reason}")
    untested = [op for op in SUPPORTED if not passed[op] and "::" not in op]
    print("no node test passes for:", ", ".join(untested) or "none")
    if failed:
        pytest.fail("\n".join(failed))
