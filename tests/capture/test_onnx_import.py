"""Round trips of the reference models, models in the styles of others, and lookups in ONNX form."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils import _pytree as pytree

from recreplay.capture import capture, load_onnx
from recreplay.capture.choices import Choice
from recreplay.capture.ingest import ingest
from recreplay.capture.planning import plan_buckets, survey
from recreplay.models import MODELS
from recreplay.models.base import Ranker
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import IdRangeError, UnsupportedModelError
from recreplay.runtime.graph import read_graph

Arrays = Mapping[str, Any]
# What makes a model quick to export and capture: shorter sequences, fewer branches.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "din": {"length": 12},
    "dien": {"length": 5},
    "streamrec": {"features": 9, "lookups": 5},
}


def captured(path: Path, **options: Any) -> Path:
    """An ONNX file as an artifact beside it."""
    out = path.with_suffix(".rr")
    capture(load_onnx(path), out=out, **{"buckets": [8], "compiler": "eager", **options})
    return out


def in_onnx_runtime(path: Path, request: Arrays) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    taken = {i.name for i in session.get_inputs()}
    answers = session.run(names, {k: v for k, v in request.items() if k in taken})
    return dict(zip(names, answers, strict=True))


def check_replay(artifact: Path, model: Path, request: Callable[[int], Arrays]) -> None:
    """Replays equal ONNX Runtime: one row, the bucket's edge, and more than fits."""
    with Runtime.load(artifact) as runtime:
        for rows in (1, 8, 19):
            asked = request(rows)
            wanted = in_onnx_runtime(model, asked)
            got = runtime.run(asked)
            assert list(got) == list(wanted)
            for name, value in wanted.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


def operators(artifact: Path) -> int:
    return len(read_graph(artifact)[8].captured.operators)


def export(model: Ranker, path: Path) -> None:
    """As a user of torch would write it."""
    arguments = model.arguments(model.example_inputs(4))
    batch = torch.export.Dim("batch", min=1)
    shapes = pytree.tree_map(lambda t: {0: batch}, arguments)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (), kwargs=arguments, dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    assert program is not None
    program.save(str(path))


# Of models that differ in their sizes alone, one. The other left out has jagged inputs:
# test_onnx_jagged.py.
SIZES = {"dlrm_rmc2", "dlrm_rmc3", "microrec_47", "microrec_98", "rm_med", "rm_large"}
BY_ROWS = sorted(MODELS.keys() - SIZES - {"two_tower"})


@pytest.mark.parametrize("name", BY_ROWS)
def test_a_reference_model_comes_back_from_onnx(name: str, tmp_path: Path) -> None:
    model = MODELS[name].factory(rows_scale=1e-4, **ARGUMENTS.get(name, {}))
    path = tmp_path / f"{name}.onnx"
    export(model, path)
    artifact = captured(path)
    check_replay(
        artifact, path, lambda n: {k: v.numpy() for k, v in model.example_inputs(n, n).items()}
    )
    ours = open_artifact(artifact).manifest
    native = ingest(model, model.example_inputs(4))
    known = survey(native, 8, ours.rewrites)
    choice = Choice(ours.rewrites, ours.strategy, ours.streams, ours.compiler)
    (planned,) = plan_buckets(native, [8], choice, known, lambda message: None)
    assert set(ours.bounds) == set(known.bounds)
    stacked = {name for stack in known.tables for name in stack.members}
    looked_up = {b.table for b in ours.bounds}
    assert looked_up & set(ours.tables) == looked_up & stacked
    count = len(planned.graph.captured.operators)
    assert operators(artifact) == pytest.approx(count, rel=0.1)
    request = model.example_inputs(7, seed=3)
    with Runtime.load(artifact) as runtime:
        got = list(runtime.run(request).values())
    with torch.inference_mode():
        answer = model(**model.arguments(request))
    wanted = [answer] if isinstance(answer, torch.Tensor) else list(pytree.tree_leaves(answer))
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)


# Models of torch-rechub, written by its own exporter


def rechub_model(name: str) -> Any:
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.models.ranking import DIN, DCNv2, DeepFM, FiBiNet, WideDeep

    torch.manual_seed(3)
    dense = [DenseFeature(f"d{i}") for i in range(3)]
    sparse = [SparseFeature(f"c{i}", vocab_size=20 + i, embed_dim=8) for i in range(5)]
    top: dict[str, Any] = {"dims": [16, 8]}
    if name == "din":
        history = [
            SequenceFeature("h", vocab_size=24, embed_dim=8, pooling="concat", shared_with="c4")
        ]
        return DIN(
            features=sparse[:4],
            history_features=history,
            target_features=[sparse[4]],
            mlp_params=top,
            attention_mlp_params={"dims": [8]},
        )
    return {
        "widedeep": lambda: WideDeep(wide_features=dense, deep_features=sparse, mlp_params=top),
        "deepfm": lambda: DeepFM(deep_features=dense, fm_features=sparse, mlp_params=top),
        "dcn_v2": lambda: DCNv2(
            features=[*dense, *sparse], n_cross_layers=2, mlp_params=top, use_low_rank_mixture=False
        ),
        "fibinet": lambda: FiBiNet(
            features=sparse, mlp_params=top, reduction_ratio=2, bilinear_type="field_all"
        ),
        "mmoe": lambda: MMOE(
            features=[*dense, *sparse],
            task_types=["classification", "regression"],
            n_expert=2,
            expert_params={"dims": [8]},
            tower_params_list=[{"dims": [4]}, {"dims": [4]}],
        ),
    }[name]()


@pytest.mark.parametrize("name", ["deepfm", "dcn_v2", "fibinet", "mmoe", "din"])
def test_a_ranker_of_torch_rechub(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch_rechub")
    from torch_rechub.utils.onnx_export import ONNXExporter

    path = tmp_path / f"{name}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ONNXExporter(rechub_model(name).eval()).export(str(path), batch_size=4, seq_length=6)
    specs = {i.name: i for i in onnx.load(path).graph.input}

    def request(rows: int) -> Arrays:
        draw = np.random.default_rng(rows)
        made = {}
        for key, spec in specs.items():
            sizes = spec.type.tensor_type.shape.dim
            shape = (rows, *(d.dim_value or 6 for d in sizes[1:]))  # 6 steps of a sequence
            if spec.type.tensor_type.elem_type == TensorProto.FLOAT:
                made[key] = draw.random(shape).astype(np.float32)
            else:
                made[key] = draw.integers(0, 20, shape)
        return made

    example = {k: torch.from_numpy(v) for k, v in request(4).items()}
    out = tmp_path / "m.rr"
    capture(load_onnx(path), example, out=out, buckets=[8], compiler="eager")
    check_replay(out, path, request)
    bounds = {b.input: b.rows for b in open_artifact(out).manifest.bounds}
    assert {f"c{i}": 20 + i for i in range(5)}.items() <= bounds.items()
    assert open_artifact(out).manifest.tables


# Graphs as other toolchains write them


def save(graph: onnx.GraphProto, path: Path, opset: int = 17) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def weights(**arrays: Any) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items()]


def draw(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * 0.3


def keras_style(path: Path) -> Path:
    """tf2onnx's habits: names with colons and slashes, int32 ids cast, `Gather` + `ReduceSum` with
    keepdims, shapes computed by `Shape -> Cast -> Slice -> Concat`, layers as `MatMul` + `Add`."""
    node = helper.make_node
    ids = [
        helper.make_tensor_value_info(f"item_{i}:0", TensorProto.INT32, ["unk__1", 4])
        for i in (0, 1)
    ]
    user = helper.make_tensor_value_info("user_id:0", TensorProto.INT64, ["unk__1", 1])
    dense = helper.make_tensor_value_info("model/dense:0", TensorProto.FLOAT, ["unk__1", 3])
    nodes = []
    for i in (0, 1):
        nodes += [
            node("Cast", [f"item_{i}:0"], [f"cast_{i}"], to=TensorProto.INT64),
            node("Gather", [f"model/emb_{i}/table:0", f"cast_{i}"], [f"rows_{i}"], axis=0),
            node("ReduceSum", [f"rows_{i}", "axes"], [f"pooled_{i}"], keepdims=1),
            node("Shape", [f"rows_{i}"], [f"shape_{i}"]),
            node("Cast", [f"shape_{i}"], [f"shape32_{i}"], to=TensorProto.INT32),
            node("Slice", [f"shape32_{i}", "zero", "one", "zero"], [f"batch_{i}"]),
            node("Concat", [f"batch_{i}", "width"], [f"flat32_{i}"], axis=0),
            node("Cast", [f"flat32_{i}"], [f"flat_{i}"], to=TensorProto.INT64),
            node("Reshape", [f"pooled_{i}", f"flat_{i}"], [f"vector_{i}"]),
        ]
    nodes += [
        node("Gather", ["model/emb_u/table:0", "user_id:0"], ["user_rows"], axis=0),
        node("Squeeze", ["user_rows", "axes"], ["user"]),
        node("Concat", ["model/dense:0", "vector_0", "vector_1", "user"], ["joined"], axis=1),
        node("MatMul", ["joined", "model/d1/MatMul:0"], ["m1"]),
        node("Add", ["m1", "model/d1/bias:0"], ["a1"]),
        node("Relu", ["a1"], ["r1"]),
        node("MatMul", ["r1", "model/d2/MatMul:0"], ["m2"]),
        node("Add", ["m2", "model/d2/bias:0"], ["a2"]),
        node("Sigmoid", ["a2"], ["Identity:0"]),
    ]
    constants = {
        "model/emb_0/table:0": draw(30, 8),
        "model/emb_1/table:0": draw(40, 8),
        "model/emb_u/table:0": draw(50, 8),
        "model/d1/MatMul:0": draw(27, 16),
        "model/d1/bias:0": draw(16),
        "model/d2/MatMul:0": draw(16, 1),
        "model/d2/bias:0": draw(1),
        "axes": np.array([1]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "width": np.array([8], dtype=np.int32),
    }
    out = helper.make_tensor_value_info("Identity:0", TensorProto.FLOAT, ["unk__1", 1])
    graph = helper.make_graph(nodes, "keras", [*ids, user, dense], [out], weights(**constants))
    return save(graph, path)


def test_a_model_as_keras_writes_it(tmp_path: Path) -> None:
    path = keras_style(tmp_path / "keras.onnx")
    artifact = captured(path)

    def request(rows: int) -> Arrays:
        rng = np.random.default_rng(rows)
        return {
            "item_0:0": rng.integers(0, 30, (rows, 4), dtype=np.int32),
            "item_1:0": rng.integers(0, 40, (rows, 4), dtype=np.int32),
            "user_id:0": rng.integers(0, 50, (rows, 1)),
            "model/dense:0": rng.standard_normal((rows, 3)).astype(np.float32),
        }

    check_replay(artifact, path, request)
    manifest = open_artifact(artifact).manifest
    assert {(b.input, b.rows) for b in manifest.bounds} == {
        ("item_0:0", 30),
        ("item_1:0", 40),
        ("user_id:0", 50),
    }
    assert set(manifest.tables) == {f"model/emb_{n}/table:0" for n in ("0", "1", "u")}
    targets = [op.target for op in read_graph(artifact)[8].captured.operators]
    # One lookup with pooling, one without, and two layers.
    assert targets.count("aten.embedding_bag.padding_idx") == 1
    assert sum(t.startswith("aten.embedding") for t in targets) <= 2
    assert targets.count("aten.addmm.default") == 2  # linear layers over turned weights
    assert not any("shape" in t or "arange" in t for t in targets)


@pytest.mark.parametrize("far", [10**9, 2**31 - 1, 2**63 - 1])
def test_slices_to_the_end_of_the_batch_are_the_whole_batch(tmp_path: Path, far: int) -> None:
    """As tf2onnx writes `x[:, 1:3]` and `x[:, None]`."""
    node = helper.make_node
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    named = weights(start=np.array([0, 1]), end=np.array([far, 3]), axes=np.array([0, 1]))
    graph = helper.make_graph(
        [node("Slice", ["x", "start", "end", "axes"], ["y"])], "g", [given], [out], named
    )
    artifact = captured(save(graph, tmp_path / "sliced.onnx"))
    x = draw(6, 5)
    with Runtime.load(artifact) as rt:
        assert np.array_equal(rt.run({"x": x})["y"], x[:, 1:3])


def loop_of(condition: list[onnx.NodeProto], **inside: Any) -> onnx.GraphProto:
    """The body of a loop: `state` plus `x` for each turn, and `condition` of `counted`."""
    made = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("count", TensorProto.INT32, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
    ]
    node = helper.make_node
    nodes = [
        node("Add", ["count", "step"], ["counted"]),
        *condition,
        node("Add", ["state", "x"], ["next"]),
    ]
    kinds = {"go_on": TensorProto.BOOL, "counted": TensorProto.INT32, "next": TensorProto.FLOAT}
    outputs = [helper.make_tensor_value_info(k, kind, []) for k, kind in kinds.items()]
    return helper.make_graph(nodes, "body", made, outputs, weights(**inside))


IN_FLOATS = [
    helper.make_node("Cast", ["counted"], ["counted_float"], to=TensorProto.FLOAT),
    helper.make_node("Less", ["counted_float", "limit"], ["go_on"]),
]


@pytest.mark.parametrize("turns", ["", "six", "three"])
def test_a_loop_goes_on_while_its_own_count_says_so(tmp_path: Path, turns: str) -> None:
    """As tf2onnx writes the steps of a masked recurrent layer: no number of turns, constants in the
    body, and a count that is compared in floats."""
    bodies = [loop_of(IN_FLOATS, step=np.int32(n), limit=np.float32(5.0)) for n in (1, 2)]
    node = helper.make_node
    nodes = [
        node("Loop", [turns, "", "zero", "x"], ["n", "y"], body=bodies[0]),
        node("Loop", [turns, "", "zero", "y"], ["m", "z"], body=bodies[1]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2])
    named = weights(zero=np.int32(0), six=np.array(6), three=np.array(3))
    path = save(helper.make_graph(nodes, "g", [given], [out], named), tmp_path / "l.onnx")
    x = draw(4, 2)
    with Runtime.load(captured(path)) as rt:
        np.testing.assert_allclose(rt.run({"x": x})["z"], in_onnx_runtime(path, {"x": x})["z"])
        times = (3 if turns == "three" else 5) + 3
        np.testing.assert_allclose(rt.run({"x": x})["z"], (times + 1) * x, rtol=1e-5)


def test_a_loop_keeps_its_values_apart_from_constants_of_another(tmp_path: Path) -> None:
    """Whose names are taken, and are like those of its own values."""
    bodies = [loop_of(IN_FLOATS, step=np.int32(1), limit=np.float32(n)) for n in (2, 3)]
    for node in bodies[1].node:
        for names in (node.input, node.output):
            names[:] = ["limit_" if name == "counted_float" else name for name in names]
    node = helper.make_node
    nodes = [
        node("Loop", ["", "", "zero", "x"], ["n", "y"], body=bodies[0]),
        node("Loop", ["", "", "zero", "y"], ["m", "z"], body=bodies[1]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph(nodes, "g", [given], [out], weights(zero=np.int32(0)))
    x = draw(4, 2)
    with Runtime.load(captured(save(graph, tmp_path / "l.onnx"))) as rt:
        np.testing.assert_allclose(rt.run({"x": x})["z"], 6 * x, rtol=1e-5)


@pytest.mark.parametrize("other", ["weight", "value"])
def test_a_layer_is_not_another_of_a_like_name(tmp_path: Path, other: str) -> None:
    """What is made of `w` has a name that nothing else has."""
    node = helper.make_node
    first = node("MatMul", ["x", "w_t"], ["h"]) if other == "weight" else node("Tanh", ["x"], ["h"])
    name = "h" if other == "weight" else "w_t"
    first.output[0] = name
    nodes = [first, node("MatMul", [name, "w"], ["y"])]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    named = weights(w=draw(2, 2), **({"w_t": draw(2, 2)} if other == "weight" else {}))
    path = save(helper.make_graph(nodes, "g", [given], [out], named), tmp_path / "m.onnx")
    check_replay(captured(path), path, lambda rows: {"x": draw(rows, 2)})


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (np.float32("inf"), TensorProto.INT64),
        (np.int64(2**40 + 3), TensorProto.INT32),
        (np.int64(300), TensorProto.UINT8),
    ],
)
def test_numbers_beyond_a_type_are_cast_as_tensors_are(
    tmp_path: Path, number: Any, kind: int
) -> None:
    node = helper.make_node
    nodes = [
        node("Cast", ["number"], ["cast"], to=kind),
        node("Cast", ["cast"], ["back"], to=TensorProto.FLOAT),
        node("Add", ["x", "back"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph(nodes, "g", [given], [out], weights(number=number))
    path = save(graph, tmp_path / "c.onnx")
    check_replay(captured(path), path, lambda rows: {"x": draw(rows, 2)})


def test_a_loop_that_data_ends_is_refused(tmp_path: Path) -> None:
    ends = [
        helper.make_node("ReduceSum", ["state"], ["sum"], keepdims=0),
        helper.make_node("Less", ["sum", "limit"], ["go_on"]),
    ]
    body = loop_of(ends, step=np.int32(1), limit=np.float32(5.0))
    nodes = [helper.make_node("Loop", ["six", "", "zero", "x"], ["n", "y"], body=body)]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    named = weights(zero=np.int32(0), six=np.array(6))
    path = save(helper.make_graph(nodes, "g", [given], [out], named), tmp_path / "l.onnx")
    with pytest.raises(UnsupportedModelError, match="ends early by data; a captured graph always"):
        load_onnx(path)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_recurrent_layers_are_torchs(tmp_path: Path, kind: str, direction: str) -> None:
    ways, gates, steps = (2 if direction == "bidirectional" else 1), {"GRU": 3, "LSTM": 4}[kind], 5
    options: Any = {"linear_before_reset": 1} if kind == "GRU" else {}
    options |= {"hidden_size": 16, "direction": direction}
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["turned"], perm=[1, 0, 2]),
        node(kind, ["turned", "w", "r", "b"], ["y", "last"], **options),
        node("Transpose", ["y"], ["every"], perm=[2, 0, 1, 3]),
        node("Transpose", ["last"], ["ends"], perm=[1, 0, 2]),
    ]
    named = weights(
        w=draw(ways, gates * 16, 6), r=draw(ways, gates * 16, 16), b=draw(ways, 2 * gates * 16)
    )
    info = helper.make_tensor_value_info
    given = info("x", TensorProto.FLOAT, ["N", steps, 6])
    outputs = [
        info("every", TensorProto.FLOAT, ["N", steps, ways, 16]),
        info("ends", TensorProto.FLOAT, ["N", ways, 16]),
    ]
    path = save(helper.make_graph(nodes, "g", [given], outputs, named), tmp_path / "r.onnx")
    artifact = captured(path)
    found = [o.target for o in read_graph(artifact)[8].captured.operators]
    assert f"aten.{kind.lower()}.input" in found
    x = draw(8, steps, 6)
    with Runtime.load(artifact) as rt:
        got = rt.run({"x": x})
    for name, want in in_onnx_runtime(path, {"x": x}).items():
        np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-5)


def matrix_style(path: Path) -> Path:
    """Matrix-input libraries: ids are columns of one float matrix, cast; one table of width 1 for
    the linear part and one of width 4 for the factorisation machine, for each column."""
    node = helper.make_node
    nodes, constants, wide, deep = [], {}, [], []
    for i in range(4):
        constants |= {f"at_{i}": np.array([i]), f"to_{i}": np.array([i + 1])}
        constants |= {f"lin_{i}": draw(10 + i, 1), f"fm_{i}": draw(10 + i, 4)}
        nodes += [
            node("Slice", ["x", f"at_{i}", f"to_{i}", "axis"], [f"col_{i}"]),
            node("Cast", [f"col_{i}"], [f"id_{i}"], to=TensorProto.INT64),
            node("Gather", [f"lin_{i}", f"id_{i}"], [f"wide_{i}"]),
            node("Gather", [f"fm_{i}", f"id_{i}"], [f"deep_{i}"]),
        ]
        wide.append(f"wide_{i}")
        deep.append(f"deep_{i}")
    constants |= {"axis": np.array([1]), "four": np.array([4]), "end": np.array([2**62])}
    constants |= {"both": np.array([1, 2]), "half": np.array(0.5, dtype=np.float32)}
    constants |= {"w": draw(3, 1), "b": draw(1), "minus": np.array([-1, 1])}
    nodes += [
        node("Concat", wide, ["wide_all"], axis=1),
        node("ReduceSum", ["wide_all", "both"], ["wide_sum"], keepdims=0),
        node("Reshape", ["wide_sum", "minus"], ["linear_logit"]),
        node("Concat", deep, ["deep_all"], axis=1),
        node("ReduceSum", ["deep_all", "axis"], ["sum"], keepdims=0),
        node("Mul", ["sum", "sum"], ["sum_squared"]),
        node("Mul", ["deep_all", "deep_all"], ["squares"]),
        node("ReduceSum", ["squares", "axis"], ["squares_sum"], keepdims=0),
        node("Sub", ["sum_squared", "squares_sum"], ["crossed"]),
        node("Mul", ["crossed", "half"], ["halved"]),
        node("ReduceSum", ["halved", "axis"], ["fm_logit"], keepdims=1),
        node("Slice", ["x", "four", "end", "axis"], ["dense"]),
        node("Gemm", ["dense", "w", "b"], ["dense_logit"], beta=0.5),
        node("Add", ["linear_logit", "fm_logit"], ["two"]),
        node("Add", ["two", "dense_logit"], ["three"]),
        node("Sigmoid", ["three"], ["score"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 7])
    out = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])
    return save(helper.make_graph(nodes, "fm", [given], [out], weights(**constants)), path)


def test_columns_of_a_float_matrix_are_lookups_of_their_own(tmp_path: Path) -> None:
    path = matrix_style(tmp_path / "fm.onnx")
    artifact = captured(path)

    def request(rows: int) -> Arrays:
        rng = np.random.default_rng(rows)
        x = rng.standard_normal((rows, 7)).astype(np.float32)
        for i in range(4):
            x[:, i] = rng.integers(0, 10 + i, rows)
        return {"x": x}

    check_replay(artifact, path, request)
    manifest = open_artifact(artifact).manifest
    assert {(b.input, b.column, b.rows) for b in manifest.bounds} == {
        ("x", i, 10 + i) for i in range(4)
    }
    assert len(manifest.tables) == 8  # two stacks of four
    targets = [op.target for op in read_graph(artifact)[8].captured.operators]
    assert targets.count("aten.embedding.default") == 2


def test_ids_that_are_computed_may_be_negative_and_count_from_the_end(tmp_path: Path) -> None:
    """ONNX counts negative indices from the end; torch's lookups do not."""
    constants = weights(table=draw(10, 4), three=np.array(3))
    nodes = [
        helper.make_node("Sub", ["ids", "three"], ["moved"]),
        helper.make_node("Gather", ["table", "moved"], ["rows"]),
        helper.make_node("Gather", ["table", "ids"], ["plain"]),
        helper.make_node("Add", ["rows", "plain"], ["y"]),
    ]
    given = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    path = save(helper.make_graph(nodes, "g", [given], [out], constants), tmp_path / "m.onnx")
    artifact = captured(path)
    check_replay(artifact, path, lambda n: {"ids": np.arange(n) % 10})
    with (
        Runtime.load(artifact) as runtime,
        pytest.raises(IdRangeError, match=r"'ids'.*-1"),
    ):
        runtime.run({"ids": np.array([0, -1])})


def test_names_that_are_no_identifiers_are_kept(tmp_path: Path) -> None:
    constants = weights(**{"a.b": draw(3, 2), "a": draw(2), "forward": draw(2), "class": draw(2)})
    nodes = [
        helper.make_node("MatMul", ["x:0", "a.b"], ["m"]),
        helper.make_node("Mul", ["m", "a"], ["n"]),
        helper.make_node("Mul", ["n", "forward"], ["o"]),
        helper.make_node("Mul", ["o", "class"], ["1/y z"]),
    ]
    given = helper.make_tensor_value_info("x:0", TensorProto.FLOAT, [None, 3])
    out = helper.make_tensor_value_info("1/y z", TensorProto.FLOAT, [None, 2])
    path = save(helper.make_graph(nodes, "g", [given], [out], constants), tmp_path / "m.onnx")
    check_replay(captured(path), path, lambda n: {"x:0": draw(n, 3)})


def test_an_old_opset_is_converted(tmp_path: Path) -> None:
    """Opset 11 has axes as attributes."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], axes=[1], keepdims=1),
        helper.make_node("Squeeze", ["s"], ["y"], axes=[1]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    path = save(helper.make_graph(nodes, "g", [given], [out]), tmp_path / "m.onnx", opset=11)
    check_replay(captured(path), path, lambda n: {"x": draw(n, 3)})


def test_fused_operators_of_onnx_runtime(tmp_path: Path) -> None:
    node, extra = helper.make_node, "com.microsoft"
    nodes = [
        node("Gelu", ["x"], ["g"], domain=extra),
        node("BiasGelu", ["g", "b"], ["bg"], domain=extra),
        node("FastGelu", ["bg", "b"], ["fg"], domain=extra),
        node("QuickGelu", ["fg"], ["qg"], domain=extra, alpha=1.5),
        node("FusedMatMul", ["qg", "w"], ["fm"], domain=extra, transB=1, alpha=0.5),
        node("FusedGemm", ["fm", "w", "b"], ["fgm"], domain=extra, activation="Relu"),
        node(
            "SkipLayerNormalization",
            ["fgm", "x", "s", "b", "b"],
            ["sl", "", "", "sum"],
            domain=extra,
            epsilon=1e-5,
        ),
        node("SkipSimplifiedLayerNormalization", ["sl", "sum", "s"], ["y"], domain=extra),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    constants = weights(b=draw(4), w=draw(4, 4), s=draw(4) + 1)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [given], [out], constants),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(extra, 1)],
        ir_version=8,
    )
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    check_replay(captured(path), path, lambda n: {"x": draw(n, 4)})


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_recurrent_layers_with_a_dynamic_batch(kind: str, tmp_path: Path) -> None:
    gates = {"GRU": 3, "LSTM": 4}[kind]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(
            kind, ["t", "w", "r", "b"], ["every", "last"], hidden_size=5, direction="bidirectional"
        ),
        helper.make_node("Transpose", ["last"], ["swapped"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["swapped", "flat"], ["y"]),
    ]
    constants = weights(
        w=draw(2, gates * 5, 3),
        r=draw(2, gates * 5, 5),
        b=draw(2, gates * 10),
        flat=np.array([-1, 10]),
    )
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])
    path = save(helper.make_graph(nodes, "g", [given], [out], constants), tmp_path / "m.onnx")
    check_replay(captured(path), path, lambda n: {"x": draw(n, 4, 3)})
