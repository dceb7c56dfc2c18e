"""Jagged lookups in ONNX form: loops over sequences that become `embedding_bag` again, or not."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from recreplay.capture import Jagged, capture, load_onnx
from recreplay.capture.ingest import dynamic_shapes, ingest
from recreplay.capture.onnx_export import export_onnx
from recreplay.capture.user_side import for_eager
from recreplay.models import two_tower
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import CaptureError, UnsupportedModelError
from recreplay.runtime.graph import read_graph

HISTORIES = {"watched": 1000, "searched": 200, "tags": 10}  # rows of their tables


def export(
    model: nn.Module, example: dict[str, Tensor], path: Path, told: Any, **options: Any
) -> Path:
    """As a user of torch would write it; `told` declares the jagged inputs."""
    known = ingest(model, example, jagged=told)
    shapes = dynamic_shapes({s.name: s for s in known.inputs})
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (),
            kwargs=example,
            dynamic_shapes=dict(zip(example, shapes, strict=True)),
            dynamo=True,
            verbose=False,
            **options,
        )
    assert program is not None
    program.save(str(path))
    return path


def in_onnx_runtime(path: Path, request: dict[str, Tensor]) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {k: v.numpy() for k, v in request.items()})[0]


def lengths_of(rows: int, most: int, draw: np.random.Generator) -> Iterator[Any]:
    """Lengths of so many rows: none, all in one row, full, and random with empty rows."""
    yield np.zeros(rows, dtype=np.int64)
    alone = np.zeros(rows, dtype=np.int64)
    alone[-1] = most * rows
    yield alone
    yield np.full(rows, most)
    for _ in range(3):
        yield draw.integers(0, most + 1, rows) * draw.integers(0, 2, rows)


# The reference model


TOWER: dict[str, Any] = {"dim": 8, "tower": (16, 8), "top": (8, 1), "lengths": (6.0, 3.0, 2.0)}


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = two_tower(rows_scale=1e-3, **TOWER)
    path = tmp_path_factory.mktemp("tower") / "two_tower.onnx"
    return export(model, model.example_inputs(64), path, None)


def operators(artifact: Path, bucket: int) -> list[str]:
    return [op.target for op in read_graph(artifact)[bucket].captured.operators]


@pytest.mark.parametrize("users", [0, 1, 3])
def test_two_tower_comes_back_from_onnx(tower: Path, users: int, tmp_path: Path) -> None:
    model = two_tower(rows_scale=1e-3, **TOWER)
    told: dict[str, Any] = {"buckets": [1, 4], "compiler": "eager"}
    if users:
        told |= {"user_inputs": model.user_inputs, "users": users}
    example = model.example_inputs(256)
    ours, native = tmp_path / "ours.rr", tmp_path / "native.rr"
    manifest = capture(load_onnx(tower), example, out=ours, **told)
    theirs = capture(model, example, out=native, **told)
    assert manifest.inputs == theirs.inputs
    assert set(manifest.bounds) == set(theirs.bounds)
    assert set(manifest.tables) == set(theirs.tables)
    for bucket in (1, 4):
        got, wanted = operators(ours, bucket), operators(native, bucket)
        assert len(got) == pytest.approx(len(wanted), rel=0.1)
        for lookup in ("aten.embedding_bag.padding_idx", "aten.embedding.default"):
            assert got.count(lookup) == wanted.count(lookup)
    room = {s.name: s.capacity for s in manifest.inputs if s.kind == "values"}
    draw = np.random.default_rng(users)
    with Runtime.load(ours) as runtime:
        for rows in (1, 4, 9):
            request = model.example_inputs(rows, rows)
            if users:
                request["user_index"] = torch.from_numpy(draw.integers(0, users, rows))
            for some in zip(*(lengths_of(4, most, draw) for most in room.values()), strict=True):
                for name, lengths in zip(room, some, strict=True):
                    count = users if users and name != "tags" else rows
                    lengths = np.resize(lengths, count)
                    if count < 4:  # what one row had may be more than so few have room for
                        lengths = np.minimum(lengths, room[name])
                    ends = np.concatenate([[0], lengths.cumsum()])
                    request[f"{name}_offsets"] = torch.from_numpy(ends)
                    ids = draw.integers(0, HISTORIES[name], int(ends[-1]))
                    request[name] = torch.from_numpy(ids)
                for name in ("user", "profile") if users else ():
                    request[name] = model.example_inputs(users, rows)[name]
                asked = {k: v for k, v in request.items() if users > 1 or k != "user_index"}
                got = runtime.run({k: v.numpy() for k, v in asked.items()})
                plain = for_eager(manifest.inputs, asked, rows)
                (answer,) = got.values()
                with torch.inference_mode():
                    eager = model(**plain).numpy()
                np.testing.assert_allclose(answer, eager, rtol=1e-4, atol=1e-5)
                there = in_onnx_runtime(tower, plain)
                np.testing.assert_allclose(answer, there, rtol=1e-4, atol=1e-5)


def test_an_artifact_with_several_users_goes_to_onnx_and_back(tmp_path: Path) -> None:
    model = two_tower(rows_scale=1e-3, **TOWER)
    out, path = tmp_path / "m.rr", tmp_path / "m.onnx"
    capture(
        model,
        out=out,
        buckets=[4],
        compiler="eager",
        user_inputs=model.user_inputs,
        users=3,
    )
    assert max(export_onnx(out, path).values()) < 1e-5
    back = load_onnx(path)
    assert back.jagged_inputs == model.jagged_inputs
    assert list(back.input_names) == list(model.example_inputs(2))
    request = model.example_inputs(5, 1)
    got = back([request[name] for name in back.input_names])["output"]
    torch.testing.assert_close(got, model(**request))


# Every form of a bag


class Bag(nn.Module):
    def __init__(self, mode: str, division: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table = nn.Parameter(torch.randn(20, 4))
        self.mode, self.division = mode, division

    def forward(self, x: Tensor, v: Tensor, o: Tensor, w: Tensor | None = None) -> Tensor:
        return x + F.embedding_bag(
            v,
            self.table.to(x.dtype),
            o.cumsum(0) - o if self.division == "lengths" else o,
            mode=self.mode,
            per_sample_weights=w,
            include_last_offset=self.division == "offsets",
        )

    def told(self, weighted: bool) -> list[Jagged]:
        by = "lengths" if self.division == "lengths" else "offsets"
        return [Jagged(v, **{by: "o"}) for v in ("v", "w")[: 1 + weighted]]

    def request(self, lengths: Any, dtype: torch.dtype, weighted: bool) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(len(lengths))
        total = int(np.sum(lengths))
        ends = torch.tensor([0, *np.cumsum(lengths)])
        given = {"offsets": ends, "starts": ends[:-1], "lengths": torch.tensor(lengths)}
        request = {
            "x": torch.rand(len(lengths), 4, generator=draw),
            "v": torch.randint(0, 20, (total,), generator=draw).to(dtype),
            "o": given[self.division].to(dtype),
        }
        return request | ({"w": torch.rand(total, generator=draw)} if weighted else {})


EXAMPLE = [2, 0, 3, 2]


_EXPORTED: dict[tuple[Any, ...], bytes] = {}  # by what was asked for: an export takes seconds


def bag_file(path: Path, mode: str = "mean", division: str = "offsets", **options: Any) -> Path:
    key = (mode, division, *options.items())
    if key not in _EXPORTED:
        model = Bag(mode, division).eval()
        example = model.request(EXAMPLE, torch.int64, False)
        _EXPORTED[key] = export(model, example, path, model.told(False), **options).read_bytes()
    path.write_bytes(_EXPORTED[key])
    return path


def check_bags(model: Bag, dtype: torch.dtype, weighted: bool, tmp_path: Path) -> None:
    """Captured, exported, captured again from ONNX: equal to ONNX Runtime and to eager."""
    told = model.told(weighted)
    example = model.request(EXAMPLE, dtype, weighted)
    options: dict[str, Any] = {"buckets": [4], "compiler": "eager", "jagged": told}
    capture(model, example, out=tmp_path / "native.rr", **options)
    path = tmp_path / "m.onnx"
    export_onnx(tmp_path / "native.rr", path)
    again = load_onnx(path)
    known = model.division != "lengths"  # of which the model makes the offsets
    assert again.jagged_inputs == ({j.values: "o" for j in told} if known else {})
    if known:
        del options["jagged"]
    manifest = capture(again, example, out=tmp_path / "m.rr", **options)
    kinds = ["rows", "values", model.division, "values"]
    assert [s.kind for s in manifest.inputs] == kinds[: 3 + weighted]
    got, wanted = operators(tmp_path / "m.rr", 4), operators(tmp_path / "native.rr", 4)
    lookup = "aten.embedding_bag.padding_idx"
    assert got.count(lookup) == wanted.count(lookup) == 1
    # What the file takes as int32 it widens, because ONNX Runtime wants that.
    assert got == wanted or dtype == torch.int32
    with Runtime.load(tmp_path / "m.rr") as runtime:
        for rows in (1, 4, 9):
            for lengths in lengths_of(rows, 4, np.random.default_rng(rows)):
                if lengths.max() > 16:
                    continue  # one row with more than the bucket holds
                request = model.request(lengths.tolist(), dtype, weighted)
                got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
                there = in_onnx_runtime(path, request)
                eager = model(**request).detach().numpy()
                np.testing.assert_allclose(got, there, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(got, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "division"),
    [
        ("sum", "offsets"),
        ("sum", "lengths"),
        ("mean", "starts"),
        ("mean", "lengths"),
        ("max", "offsets"),
        ("max", "starts"),
    ],
)
def test_every_mode_and_division_comes_back(mode: str, division: str, tmp_path: Path) -> None:
    check_bags(Bag(mode, division).eval(), torch.int64, False, tmp_path)


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_int32_comes_back(mode: str, tmp_path: Path) -> None:
    check_bags(Bag(mode, "offsets").eval(), torch.int32, False, tmp_path)


class Narrow(nn.Module):
    """int32 that the model makes itself: where jagged bags begin and end, and a range of bags."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.EmbeddingBag(20, 4, mode="max", include_last_offset=True)
        self.weighted = nn.EmbeddingBag(20, 4, mode="sum")

    def forward(self, v: Tensor, n: Tensor, ids: Tensor, w: Tensor) -> Tensor:
        ends = torch.cat([n.new_zeros(1), n.cumsum(0)]).to(v.dtype)
        return self.bags(v, ends) + self.weighted(ids, per_sample_weights=w)


def test_int32_of_the_models_own_comes_back(tmp_path: Path) -> None:
    model, told = Narrow().eval(), [Jagged("v", lengths="n")]
    given = {
        "v": torch.randint(0, 20, (7,), dtype=torch.int32),
        "n": torch.tensor(EXAMPLE, dtype=torch.int32),
        "ids": torch.randint(0, 20, (4, 3), dtype=torch.int32),
        "w": torch.rand(4, 3),
    }
    options: dict[str, Any] = {"buckets": [4], "compiler": "eager", "jagged": told}
    capture(model, given, out=tmp_path / "native.rr", **options)
    export_onnx(tmp_path / "native.rr", tmp_path / "m.onnx")
    capture(load_onnx(tmp_path / "m.onnx"), given, out=tmp_path / "m.rr", **options)
    with Runtime.load(tmp_path / "m.rr") as runtime:
        got = runtime.run({k: v.numpy() for k, v in given.items()})["output"]
    np.testing.assert_allclose(got, model(**given).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_weights_of_the_ids_come_back(tmp_path: Path) -> None:
    check_bags(Bag("sum", "offsets").eval(), torch.int64, True, tmp_path)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("options", [{"optimize": False}, {"opset_version": 17}])
def test_other_ways_to_write_the_loop(mode: str, options: Any, tmp_path: Path) -> None:
    path = bag_file(tmp_path / "m.onnx", mode, **options)
    assert load_onnx(path).jagged_inputs == {"v": "o"}


def test_what_is_carried_may_come_in_either_order(tmp_path: Path) -> None:
    """In which order torch's exporter writes it depends on Python's hashes."""
    path = bag_file(tmp_path / "m.onnx")
    model = onnx.load(path)
    loop = next(n for n in model.graph.node if n.op_type == "Loop")
    body = loop.attribute[0].g
    for swapped in (loop.input, loop.output, body.input, body.output):
        kept = [copy.deepcopy(item) for item in swapped]
        del swapped[:]
        swapped.extend([*kept[:-2], kept[-1], kept[-2]])
    onnx.save(model, path)
    assert load_onnx(path).jagged_inputs == {"v": "o"}


def test_the_length_of_offsets_may_have_any_name(tmp_path: Path) -> None:
    path = bag_file(tmp_path / "m.onnx")
    model = onnx.load(path)
    (offsets,) = (i for i in model.graph.input if i.name == "o")
    offsets.type.tensor_type.shape.dim[0].dim_param = "M"
    onnx.save(model, path)
    assert load_onnx(path).jagged_inputs == {"v": "o"}


# What is refused


OTHER = {
    "Add": "Sub",
    "Sub": "Add",
    "Mul": "Add",
    "Div": "Mul",
    "Equal": "Less",
    "Less": "LessOrEqual",
    "Greater": "GreaterOrEqual",
    "ReduceSum": "ReduceMean",
    "ReduceMean": "ReduceSum",
    "ReduceMax": "ReduceMin",
    "CastLike": "Mod",
    "Identity": "Neg",
    "Reshape": "Expand",
    "Size": "Shape",
    "Gather": "GatherElements",
}


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def alter(node: onnx.NodeProto) -> None:
    """Another operator, or the same on something else."""
    if node.op_type in OTHER:
        node.op_type = OTHER[node.op_type]
    elif node.op_type == "Slice":
        node.input[1], node.input[2] = node.input[2], node.input[1]
    elif node.op_type == "If":
        first, second = node.attribute
        first.name, second.name = second.name, first.name
    elif node.op_type == "SequenceInsert":
        node.input.append("int64_1_1d")
    elif node.op_type == "Shape":
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("start", -1))
    elif node.op_type == "Cast":
        node.attribute[0].i = onnx.TensorProto.FLOAT16
    else:
        raise AssertionError(node.op_type)


REFUSED = (
    r"^operator ConcatFromSequence \(node '.*'\) joins a sequence, which is supported only as "
    r"torch\.onnx\.export\(dynamo=True\) writes embedding_bag with float32 tables; in its operator "
    r"Loop \(node '.*'\), .*: export the model again, or pool without a sequence$"
)


@pytest.mark.parametrize(
    ("mode", "division"), [("sum", "offsets"), ("mean", "starts"), ("max", "offsets")]
)
def test_a_loop_that_differs_in_one_operator_is_refused(
    mode: str, division: str, tmp_path: Path
) -> None:
    whole = onnx.load(bag_file(tmp_path / "m.onnx", mode, division))
    (loop,) = (n for n in whole.graph.node if n.op_type == "Loop")
    inside = list(nodes_of(loop.attribute[0].g))
    assert len(inside) > 14
    for at in range(len(inside)):
        model = copy.deepcopy(whole)
        (loop,) = (n for n in model.graph.node if n.op_type == "Loop")
        node = list(nodes_of(loop.attribute[0].g))[at]
        alter(node)
        onnx.save(model, tmp_path / "other.onnx")
        with pytest.raises(UnsupportedModelError, match=REFUSED):
            load_onnx(tmp_path / "other.onnx")


def test_the_refusal_names_the_operator(tmp_path: Path) -> None:
    model = onnx.load(bag_file(tmp_path / "m.onnx", "sum"))
    (loop,) = (n for n in model.graph.node if n.op_type == "Loop")
    (node,) = (n for n in nodes_of(loop.attribute[0].g) if n.op_type == "ReduceSum")
    node.op_type, node.name = "ReduceProd", "product"
    onnx.save(model, tmp_path / "m.onnx")
    message = (
        r"Loop \(node '.*'\), operator ReduceProd \(node 'product'\) stands where operator "
        r"ReduceSum is expected: export"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        load_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_that_leave_out_ids_are_refused_by_what_does_it(tmp_path: Path, mode: str) -> None:
    bag = nn.EmbeddingBag(20, 4, mode=mode, padding_idx=3).eval()
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            bag,
            (torch.randint(0, 20, (3, 5)),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(tmp_path / "m.onnx"))
    message = (
        r"^operator ConcatFromSequence .* joins a sequence, .*: it has a loop of its own, as torch "
        r"leaves out the ids of a padding_idx; capture the PyTorch model itself, or export it with"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        load_onnx(tmp_path / "m.onnx")


def test_what_stands_around_the_loop_is_looked_at_too(tmp_path: Path) -> None:
    whole = onnx.load(bag_file(tmp_path / "m.onnx"))
    for at, node in enumerate(whole.graph.node):
        needed = node.op_type in ("Gather", "Mul", "Unsqueeze", "Size", "Sub", "Less", "Reshape")
        if not needed:
            continue
        model = copy.deepcopy(whole)
        node = model.graph.node[at]
        node.op_type = OTHER.get(node.op_type, "Squeeze")
        onnx.save(model, tmp_path / "other.onnx")
        with pytest.raises(UnsupportedModelError, match=REFUSED):
            load_onnx(tmp_path / "other.onnx")


@pytest.mark.parametrize(
    ("pick", "value"),
    [
        (lambda a: a.shape == () and a == 2, 3),  # where a bag ends
        (lambda a: a.shape == () and a == 1, 2),
        (lambda a: a.shape == (1, 4) and not a.any(), 1.0),  # a bag without ids
        (lambda a: a.dtype == np.float32 and a.shape == (1,), 2.0),  # weights of the ids
    ],
)
def test_stored_values_are_looked_at(
    pick: Callable[[Any], bool], value: float, tmp_path: Path
) -> None:
    path = bag_file(tmp_path / "m.onnx")
    model = onnx.load(path)
    graphs = [model.graph]
    for node in nodes_of(model.graph):
        graphs += [a.g for a in node.attribute if a.HasField("g")]
    changed = 0
    for graph in graphs:
        for stored in graph.initializer:
            array = numpy_helper.to_array(stored)
            if pick(array):
                other = np.full_like(array, value)
                stored.CopyFrom(numpy_helper.from_array(other, stored.name))
                changed += 1
    assert changed
    onnx.save(model, path)
    with pytest.raises(UnsupportedModelError, match=r"joins a sequence|cannot be run"):
        load_onnx(path)


def test_tables_of_another_precision_are_refused(tmp_path: Path) -> None:
    """The exporter pools them in float32, which torch does not."""
    model = Bag("sum", "offsets").double().eval()
    example = model.request(EXAMPLE, torch.int64, False)
    example["x"] = example["x"].double()
    path = export(model, example, tmp_path / "m.onnx", model.told(False))
    with pytest.raises(UnsupportedModelError, match=r"rows of torch.float64 are pooled as float32"):
        load_onnx(path)


def test_what_must_be_said_of_jagged_inputs(tmp_path: Path) -> None:
    by_offsets = load_onnx(bag_file(tmp_path / "m.onnx"))
    out = tmp_path / "m.rr"
    text = (
        "the model pools jagged inputs, 'v' (by 'o'), and the file does not say how many values a "
        "row has; give example inputs with real lengths (example_inputs=, --inputs)"
    )
    with pytest.raises(CaptureError, match=f"^{re.escape(text)}$"):
        capture(by_offsets, out=out, compiler="eager")
    model = Bag("sum", "lengths").eval()
    by_lengths = load_onnx(bag_file(tmp_path / "l.onnx", "sum", "lengths"))
    with pytest.raises(CaptureError, match=r"jagged inputs, by offsets that it computes, and the"):
        capture(by_lengths, out=out, compiler="eager")
    example = model.request(EXAMPLE, torch.int64, False)
    text = (
        "example inputs have different batch sizes: {'x': 4, 'v': 7, 'o': 4}; all need the same "
        "number of rows, but for values of a varying number per row and their offsets or lengths, "
        "which have to be declared (jagged=, --jagged)"
    )
    with pytest.raises(CaptureError, match=f"^{re.escape(text)}$"):
        capture(by_lengths, example, out=out, compiler="eager")
    assert not out.exists()
    asked = [Jagged("v", lengths="o", capacity=5)]
    capture(by_lengths, example, out=out, buckets=[2], compiler="eager", jagged=asked)
    kinds = [(s.kind, s.capacity) for s in open_artifact(out).manifest.inputs]
    assert kinds == [("rows", 0), ("values", 5), ("lengths", 0)]
