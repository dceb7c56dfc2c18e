"""Damaged model files: flipped bytes and truncations end in an error or in a model, never else.

The files are read in processes of their own, with a time limit: the parsers are native code.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLIPS, CUTS = 400, 100
SECONDS = 120  # for all; reading one of these files takes a few milliseconds
CAPTURED = 4  # the first models that can be read are captured too

READER = """
import sys
from pathlib import Path

import torch

from recreplay.capture import capture, load_onnx
from recreplay.runtime import Runtime
from recreplay.runtime.errors import RecReplayError

torch.set_num_threads(1)
folder, captured = Path(sys.argv[1]), 0
for path in sorted(folder.glob("*.onnx")):
    out = path.with_suffix(".rr")
    try:
        model = load_onnx(path)
        if captured < int(sys.argv[2]):
            captured += 1
            capture(model, out=out, buckets=[2], compiler="eager")
            Runtime.load(out).close()
    except RecReplayError as error:
        assert str(error), path
        print("refused", type(error).__name__, flush=True)
        assert not out.exists(), path
    else:
        print("model", flush=True)
"""


def model_file() -> bytes:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    node = helper.make_node
    nodes = [
        node("Gather", ["table_a", "a"], ["rows_a"]),
        node("ReduceSum", ["rows_a", "axis"], ["pooled"], keepdims=0),
        node("Gather", ["table_b", "b"], ["rows_b"]),
        node("Shape", ["dense"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Unsqueeze", ["batch", "first"], ["batch_1"]),
        node("Concat", ["batch_1", "width"], ["wanted"], axis=0),
        node("Reshape", ["rows_b", "wanted"], ["flat"]),
        node("Concat", ["dense", "pooled", "flat"], ["joined"], axis=1),
        node("Gemm", ["joined", "w1", "b1"], ["h"], transB=1),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w2"], ["logit"]),
        node("Sigmoid", ["logit"], ["score"]),
    ]
    constants = {
        "table_a": array(9, 4),
        "table_b": array(7, 4),
        "axis": np.array([1]),
        "zero": np.array(0),
        "first": np.array([0]),
        "width": np.array([4]),
        "w1": array(5, 11),
        "b1": array(5),
        "w2": array(5, 1),
    }
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "ranker",
        [
            info("dense", TensorProto.FLOAT, ["N", 3]),
            info("a", TensorProto.INT64, ["N", 2]),
            info("b", TensorProto.INT64, ["N", 1]),
        ],
        [info("score", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def test_damaged_files_are_refused_or_are_models(tmp_path: Path) -> None:
    whole = model_file()
    rng = np.random.default_rng(11)
    for number in range(FLIPS + CUTS):
        damaged = bytearray(whole)
        if number < FLIPS:
            for at in rng.integers(0, len(whole), rng.integers(1, 4)):
                damaged[at] ^= int(rng.integers(1, 256))
        else:
            del damaged[int(rng.integers(0, len(whole))) :]
        (tmp_path / f"{number:04}.onnx").write_bytes(damaged)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READER, str(tmp_path), str(CAPTURED)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = Counter(line.partition(" ")[0] for line in done.stdout.splitlines())
    left = {p.suffix for p in tmp_path.iterdir()}
    assert left <= {".onnx", ".rr"}, left
    assert all((p / "manifest.sha256").is_file() for p in tmp_path.glob("*.rr"))
    print(f"\n{outcomes['refused']} refused, {outcomes['model']} are models still")
    assert outcomes["refused"] + outcomes["model"] == FLIPS + CUTS
    assert outcomes["refused"] > CUTS
    assert outcomes["model"] > 0  # of the flips, many only change a weight
