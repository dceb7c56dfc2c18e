"""What an ONNX file is refused for, in words."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from recreplay.capture import capture, load_onnx
from recreplay.capture.onnx_import import reading
from recreplay.runtime.errors import CaptureError, UnsupportedModelError

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "M"])
node = helper.make_node


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto] | None = None,
    opset: int = 18,
    **constants: Any,
) -> Path:
    held = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs or [X], [Y], held)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my.ops", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    return path


def value(name: str, dtype: int, shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


BRANCH = helper.make_graph([node("Identity", ["x"], ["inner"])], "then", [], [Y])
BRANCH.output[0].name = "inner"
BODY = helper.make_graph(
    [node("Identity", ["go"], ["go_on"]), node("Add", ["state", "x"], ["next"])],
    "body",
    [
        value("turn", TensorProto.INT64, []),
        value("go", TensorProto.BOOL, []),
        value("state", TensorProto.FLOAT, None),
    ],
    [value("go_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, None)],
)


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        (
            [node("NonZero", ["x"], ["n"], name="where"), node("Cast", ["n"], ["y"], to=1)],
            {},
            r"operators that are not supported: NonZero \(node 'where'\)\. Supported are Abs, .*"
            r"Where, .*com\.microsoft::Gelu.*, and If and Loop that do not depend on data$",
        ),
        (
            [node("Magic", ["x"], ["y"], name="trick", domain="my.ops")],
            {},
            r"not supported: my\.ops::Magic \(node 'trick'\)",
        ),
        (
            [
                node("Cast", ["x"], ["ints"], to=TensorProto.INT64),
                node("Flatten", ["ints"], ["flat"], axis=0),
                node("Squeeze", ["flat"], ["sizes"]),
                node("Reshape", ["x", "sizes"], ["y"], name="shaper"),
            ],
            {},
            r"operator Reshape \(node 'shaper'\): its shape \('sizes'\) depends on the data, so "
            r"the shape of its output does; a captured graph has fixed shapes",
        ),
        (
            [
                node("ReduceSum", ["x"], ["total"], keepdims=0),
                node("Greater", ["total", "limit"], ["c"]),
                node("If", ["c"], ["y"], name="maybe", then_branch=BRANCH, else_branch=BRANCH),
            ],
            {"limit": np.float32(0)},
            r"operator If \(node 'maybe'\) runs one of two branches by data; .* select by Where",
        ),
        (
            [
                node("ReduceSum", ["x"], ["total"], keepdims=0),
                node("Cast", ["total"], ["turns"], to=TensorProto.INT64),
                node("Loop", ["turns", "", "x"], ["y"], name="again", body=BODY),
            ],
            {},
            r"operator Loop \(node 'again'\) runs as often as the data or the batch says",
        ),
        (
            [node("Scan", ["x"], ["y"], name="scan", body=BRANCH, num_scan_inputs=1)],
            {},
            r"not supported: Scan \(node 'scan'\)|not a valid ONNX model",
        ),
        (
            [node("MatMul", ["x", "w"], ["y"], name="product")],
            {"w": np.zeros((4, 2), np.float32)},
            r"operator recreplay::Linear \(node 'product'\) cannot be run: .*reduction dim",
        ),
        (
            [
                node("ConstantOfShape", ["huge"], ["z"], name="huge_one"),
                node("Add", ["x", "z"], ["y"]),
            ],
            {"huge": np.array([2**20, 2**20])},
            r"operator ConstantOfShape \(node 'huge_one'\) makes a tensor of shape "
            r"\(1048576, 1048576\).*more than 4 GiB",
        ),
    ],
)
def test_refused_graphs(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.onnx", nodes, **constants)
    with pytest.raises(CaptureError, match=message):
        load_onnx(path)


def test_a_refused_operator_is_told_of_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "m.onnx", [node("Add", ["x", "w"], ["y"])], w=np.zeros((2, 5)))
    with pytest.raises(CaptureError, match=r"operator Add .* cannot be run"):
        load_onnx(path)
    assert "Traceback" not in capfd.readouterr().err + caplog.text


def test_control_flow_that_no_data_decides_is_unrolled(tmp_path: Path) -> None:
    nodes = [
        node("Loop", ["three", "", "x"], ["tripled"], body=BODY),
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "one"], ["width"]),
        node("Equal", ["width", "three"], ["c"]),
        node("If", ["c"], ["same"], then_branch=BRANCH, else_branch=BRANCH),
        node("Add", ["tripled", "same"], ["y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, three=np.array(3), one=np.array(1))
    out = tmp_path / "m.rr"
    capture(load_onnx(path), out=out, buckets=[2], compiler="eager")
    x = torch.rand(2, 3)
    torch.testing.assert_close(load_onnx(path)([x])["y"], 5 * x)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (value("x", TensorProto.FLOAT, [4, 3]), r"input 'x' has a fixed batch of 4; export"),
        (value("x", TensorProto.FLOAT, []), r"input 'x' is a scalar; every input needs a row"),
        (value("x", TensorProto.FLOAT, None), r"Field 'shape' of 'type' is required but missing"),
        (
            value("x", TensorProto.FLOAT, ["N", "length"]),
            r"input 'x' has the symbolic size length beside its batch; .* \(--inputs\)",
        ),
    ],
)
def test_inputs_that_need_more_to_be_said(
    given: onnx.ValueInfoProto, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.onnx", [node("Relu", ["x"], ["y"])], [given])
    with pytest.raises(CaptureError, match=message):
        capture(load_onnx(path), out=tmp_path / "m.rr", compiler="eager")
    assert not (tmp_path / "m.rr").exists()


def test_a_string_input(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        [node("Identity", ["x"], ["y"])],
        [value("x", TensorProto.STRING, ["N"])],
    )
    with pytest.raises(UnsupportedModelError, match=r"input 'x' has the element type STRING"):
        load_onnx(path)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [node("MatMul", ["x", "w"], ["y"])], w=np.eye(3, dtype="f4"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CaptureError, match=r"is not an ONNX model, or is truncated"):
        load_onnx(path)
    path.write_bytes(b"")
    with pytest.raises(CaptureError, match=r"is truncated: it has no IR version"):
        load_onnx(path)
    with pytest.raises(CaptureError, match=r"no file at .*absent\.onnx"):
        load_onnx(tmp_path / "absent.onnx")


def test_a_file_beyond_protobuf(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(CaptureError, match=r"2,147,483,648 bytes; protobuf ends at 2,147,483,647"):
        load_onnx(path)


def test_an_opset_of_the_future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.onnx", [node("Relu", ["x"], ["y"])], opset=18)
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 17)
    with pytest.raises(CaptureError, match=r"in opset 18; onnx .* knows opsets up to 17: export"):
        load_onnx(path)


# External data


def with_external_data(folder: Path) -> Path:
    path = write(folder / "m.onnx", [node("MatMul", ["x", "w"], ["y"])], w=np.eye(3, dtype="f4"))
    model = onnx.load(path)
    onnx.save_model(
        model, path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


def redirect(path: Path, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    model = load_onnx(with_external_data(tmp_path))
    x = torch.rand(2, 3)
    assert torch.equal(model([x])["y"], x)


@pytest.mark.parametrize(
    "escape", ["../weights.bin", "sub/../../weights.bin", "{parent}/weights.bin"]
)
def test_external_data_outside_of_the_folder(escape: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    path = with_external_data(inside)
    (inside / "weights.bin").rename(tmp_path / "weights.bin")
    redirect(path, location=escape.format(parent=tmp_path))
    with pytest.raises(
        CaptureError, match=r"tensor 'w' takes its data from .*, outside of the model's folder"
    ):
        load_onnx(path)


def test_external_data_through_a_link(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = with_external_data(inside)
    (inside / "weights.bin").rename(tmp_path / "weights.bin")
    os.symlink(tmp_path / "weights.bin", inside / "weights.bin")
    with pytest.raises(CaptureError, match=r"outside of the model's folder"):
        load_onnx(path)


def test_external_data_that_is_missing_or_short(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    whole = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(whole[:20])
    with pytest.raises(CaptureError, match=r"takes bytes 0 to 36 of .*, which has 20: it is trunc"):
        load_onnx(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CaptureError, match=r"which is no file"):
        load_onnx(path)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CaptureError, match=r"not installed .*: pip install 'recreplay\[onnx\]'"):
        load_onnx(tmp_path / "m.onnx")


def test_the_oldest_opset_is_the_one_that_is_said() -> None:
    assert reading.OLDEST_OPSET == 13
