"""Grouped lookups: what is left of a program, that it computes the same, and how tables are stored.

The rewrite is for CUDA. Here it is applied to captures for the CPU, where the operator is plain
torch, so that everything around the kernel is what runs on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recreplay.capture import REWRITES, pipeline
from recreplay.capture.choices import Choice, choices
from recreplay.capture.declared import Jagged
from recreplay.capture.generalise import DynamicCode
from recreplay.capture.ingest import ingest
from recreplay.capture.planning import plan_buckets, survey
from recreplay.capture.precision import Precision
from recreplay.capture.program import Program
from recreplay.capture.rewrites.group_lookups import group_lookups
from recreplay.capture.rewrites.stack_lookups import plan_stacks
from recreplay.capture.sharing import share
from recreplay.capture.specialise import specialise
from recreplay.capture.table_groups import plan_groups
from recreplay.capture.weight_file import weight_tensors
from recreplay.models import MODELS
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.aten import GROUPED_LOOKUP
from recreplay.runtime.errors import RefreshError
from recreplay.runtime.lookup_slots import unpack_slots
from recreplay.runtime.lowered import INT8, SCALES, Stored, lower

Capture = Callable[..., Path]
aten = torch.ops.aten
GROUPED = ("group_lookups", "stack_lookups", "stack_branches")


def grouped(model: nn.Module, example: Any, bucket: int = 4, **told: Any) -> Program:
    made = specialise(ingest(model.eval(), example, **told), bucket)
    group_lookups(made, plan_groups(made, plan_stacks(made)))
    return made


def targets(made: Program) -> list[str]:
    return [str(n.target) for n in made.graph.nodes if n.op == "call_function"]


def the_lookup(made: Program) -> torch.fx.Node:
    (node,) = [n for n in made.graph.nodes if str(n.target) == GROUPED_LOOKUP]
    return node


# Where it applies


def test_a_capture_for_the_cpu_leaves_it_out(captured: Capture) -> None:
    model = MODELS["dlrm"].factory(tables=3, rows_scale=1e-3)
    manifest = open_artifact(captured(model, rewrites=REWRITES)).manifest
    assert "group_lookups" not in manifest.rewrites
    assert {view.storage for view in manifest.tables.values()} == {"stack_float32_32"}


def test_the_tuner_tries_cuda_without_it() -> None:
    given = Choice(("stack_lookups", "group_lookups"), "matching", 8, "inductor")
    tried = {c.rewrites for c in choices("quick", given, "cuda", False)}
    assert tried == {("stack_lookups", "group_lookups"), ("stack_lookups",)}
    useless = pipeline._useless_rewrites("inductor", "cuda")
    assert "group_lookups" not in useless
    assert "pack_linears" in useless


# Models: operators left, and scores


def compare(path: Path, model: Any, seeds: int = 1) -> None:
    """Replay equals the model at 1 row, at the buckets, between, and above."""
    with Runtime.load(path) as runtime, torch.inference_mode():
        for rows in (1, 2, 3, 8, 11) * seeds:
            request = model.example_inputs(rows, seed=rows)
            got = runtime.run({k: v.numpy() for k, v in request.items()})
            want = model(**model.arguments(request))
            if isinstance(want, Tensor):
                want = {"output": want}
            elif isinstance(want, tuple):
                want = {f"output_{i}": t for i, t in enumerate(want)}
            for name, value in want.items():
                np.testing.assert_allclose(got[name], value.numpy(), rtol=1e-4, atol=1e-5)


# The model, its lookups before, and what concatenations read after: (pieces of each, in order).
SEEN: list[tuple[str, dict[str, Any], list[int]]] = [
    ("dlrm", {"tables": 5}, [2]),  # the bottom MLP, and all lookups
    ("microrec_47", {}, []),
    ("wide_deep", {}, [2]),
    ("rm_small", {}, [2, 2]),  # vectors of the dot products, then the bottom with the products
    ("streamrec", {"features": 9, "lookups": 5}, [10]),  # each branch goes on by itself
    ("din", {"length": 12}, [2, 3]),
    ("two_tower", {}, []),
]


@pytest.mark.parametrize(("name", "arguments", "pieces"), SEEN[:5])
def test_one_lookup_and_no_copies_of_it(
    name: str, arguments: dict[str, Any], pieces: list[int]
) -> None:
    model = MODELS[name].factory(rows_scale=1e-4, **arguments)
    made = grouped(model, model.example_inputs(4))
    assert targets(made).count(GROUPED_LOOKUP) == 1
    assert not any("embedding" in t or "stack" in t for t in targets(made))
    joints = [n for n in made.graph.nodes if n.target is aten.cat.default]
    assert [len(n.args[0]) for n in joints] == pieces


@pytest.mark.parametrize("strategy", ["single", "matching"])
@pytest.mark.parametrize(("name", "arguments"), [(n, a) for n, a, _ in SEEN])
@pytest.mark.usefixtures("on_cpu")
def test_scores_are_the_models(
    captured: Capture, name: str, arguments: dict[str, Any], strategy: str
) -> None:
    model = MODELS[name].factory(rows_scale=1e-4, **arguments)
    path = captured(model, buckets=[2, 8], strategy=strategy, rewrites=GROUPED)
    operators = [op for s in open_artifact(path).manifest.buckets[1].segments for op in s.operators]
    assert sum("grouped_lookup" in op for op in operators) == 1
    assert not any("embedding" in op for op in operators)
    compare(path, model)


class Corners(nn.Module):
    """Odd widths, columns of a matrix of ids, an int32 input, means, factors, a float64 table, a
    lookup of what was looked up, and one that is also returned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        widths = {"a": 1, "b": 3, "c": 257, "d": 8, "e": 8, "f": 6}
        self.tables = nn.ParameterDict(
            {k: nn.Parameter(torch.randn(9 + len(k), w)) for k, w in widths.items()}
        )
        self.precise = nn.Parameter(torch.randn(7, 4, dtype=torch.float64))
        self.register_buffer("follows", torch.randint(0, 9, (9,)))

    def forward(self, x: Tensor, small: Tensor, many: Tensor, w: Tensor) -> dict[str, Tensor]:
        t = self.tables
        mean = F.embedding_bag(many, t["d"], mode="mean")
        parts = [
            F.embedding(x[:, 0], t["a"]),
            F.embedding(x[:, 2], t["b"]),
            F.embedding_bag(many, t["d"], mode="sum", per_sample_weights=w),
            F.embedding_bag(x[:, 1:3], t["c"], mode="sum"),
            F.embedding(small, t["e"]),
            F.embedding(self.follows[x[:, 1]], t["f"]),
            F.embedding(small, self.precise).float(),
        ]
        return {"joined": torch.cat(parts, 1), "mean": mean, "twice": mean * 2}

    def request(self, rows: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return {
            "x": torch.randint(0, 9, (rows, 3), generator=draw),
            "small": torch.randint(0, 7, (rows,), generator=draw).to(torch.int32),
            "many": torch.randint(0, 9, (rows, 5), generator=draw),
            "w": torch.randn(rows, 5, generator=draw),
        }


def test_ids_are_read_where_they_were_staged() -> None:
    made = grouped(Corners(), Corners().request(4))
    assert set(made.staged[next(iter(made.staged))]) == {"x", "many"}
    slots = unpack_slots(made.constants[str(the_lookup(made).args[4].target)[6:]])
    strides = {(slot.stride, slot.ids_stride, slot.length) for slot in slots}
    assert {(1, 3, 1), (3, 3, 1), (257, 3, 2), (8, 5, 5)} <= strides
    assert {slot.scales_base for slot in slots} == {-1, 0}
    # Whatever is no input of 64 bits is put behind: `small`, and the ids that are looked up.
    ids = the_lookup(made).args[1]
    assert [len(n.args[0]) for n in (ids,) if n.target is aten.cat.default] == [3]


@pytest.mark.usefixtures("on_cpu")
def test_corners(captured: Capture) -> None:
    model = Corners().eval()
    path = captured(model, model.request(4), rewrites=GROUPED)
    with Runtime.load(path) as runtime, torch.inference_mode():
        assert runtime.manifest.tables.keys() == {f"tables.{k}" for k in "abcdef"}
        for rows in (1, 2, 3, 4, 9):
            request = model.request(rows, seed=rows)
            got = runtime.run({k: v.numpy() for k, v in request.items()})
            for name, value in model(**request).items():
                np.testing.assert_allclose(got[name], value.numpy(), rtol=1e-4, atol=1e-5)


class Jags(nn.Module):
    """Jagged bags of three widths, the last with a factor for each id, beside a regular one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.tables = nn.ModuleList(nn.Embedding(10, w) for w in (4, 12, 5, 16))

    def forward(
        self, item: Tensor, values: list[Tensor], offsets: list[Tensor], factors: Tensor
    ) -> Tensor:
        one, two, three, four = (t.weight for t in self.tables)
        end = {"include_last_offset": True}
        parts = [
            F.embedding_bag(values[0], one, offsets[0], mode="sum", **end),
            F.embedding_bag(values[1], two, offsets[1], mode="mean", **end),
            F.embedding_bag(
                values[1], three, offsets[1], mode="sum", per_sample_weights=factors, **end
            ),
            F.embedding(item, four),
        ]
        return torch.cat(parts, 1)

    def request(self, rows: int, seed: int) -> dict[str, Tensor]:
        draw = np.random.default_rng(seed)
        made = {"item": torch.from_numpy(draw.integers(0, 10, rows))}
        for i in range(2):
            ends = np.concatenate([[0], np.cumsum(draw.integers(0, 4, rows))])
            made[f"values_{i}"] = torch.from_numpy(draw.integers(0, 10, ends[-1]))
            made[f"offsets_{i}"] = torch.from_numpy(ends)
        made["factors"] = torch.randn(len(made["values_1"]))
        return made


@pytest.mark.usefixtures("on_cpu")
def test_jagged_bags_with_factors(captured: Capture) -> None:
    model = Jags().eval()
    divided = [
        Jagged("values_0", offsets="offsets_0", capacity=3),
        Jagged("values_1", offsets="offsets_1", capacity=4),
        Jagged("factors", offsets="offsets_1", capacity=4),
    ]
    path = captured(model, model.request(8, 3), jagged=divided, rewrites=GROUPED)
    operators = [op for s in open_artifact(path).manifest.buckets[0].segments for op in s.operators]
    assert sum("grouped_lookup" in op for op in operators) == 1
    assert not any("embedding" in op for op in operators)
    with Runtime.load(path) as runtime, torch.inference_mode():
        for seed, rows in enumerate((1, 2, 3, 4, 9, 4, 4)):
            given = model.request(rows, seed)
            got = runtime.run({k: v.numpy() for k, v in given.items()})["output"]
            pairs = ([given[f"{k}_{i}"] for i in range(2)] for k in ("values", "offsets"))
            want = model(given["item"], *pairs, given["factors"])
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("on_cpu")
def test_an_id_that_nobody_checked_reads_nothing(captured: Capture) -> None:
    model = MODELS["microrec_47"].factory(rows_scale=1e-4)
    path = captured(model, rewrites=GROUPED)
    request = {k: v.numpy() for k, v in model.example_inputs(3, seed=1).items()}
    bad = {**request, "ids_7": np.array([-1, 10**12, 2**63 - 1])}
    table = "embed.tables.7.weight"
    with Runtime.load(path, check="off") as runtime:
        got = runtime.run(bad)["output"]
        runtime.update_weights({table: np.zeros(model.embed.tables[7].weight.shape, np.float32)})
        np.testing.assert_array_equal(got, runtime.run(request)["output"])


# Storage


@pytest.mark.usefixtures("on_cpu")
def test_one_table_is_refreshed_alone(captured: Capture) -> None:
    model = MODELS["microrec_47"].factory(rows_scale=1e-4)
    path = captured(model, rewrites=GROUPED)
    total = sum(p.numel() * 4 for p in model.parameters())
    assert (path / "weights.safetensors").stat().st_size < total * 1.05 + 16384
    with Runtime.load(path) as runtime, torch.no_grad():
        assert {v.storage for v in runtime.manifest.tables.values()} == {"group_float32"}
        with pytest.raises(RefreshError, match="no weight 'group_float32'"):
            runtime.update_weights({"group_float32": np.zeros(3)})
        for at in (0, 20, 46):
            weight = model.embed.tables[at].weight
            weight.mul_(-2.0)
            runtime.update_weights({f"embed.tables.{at}.weight": weight.numpy()})
            weight[1] = 3.0
            runtime.update_rows(f"embed.tables.{at}.weight", [1], weight[1:2].numpy())
            for rows in (1, 4):
                request = model.example_inputs(rows, seed=at)
                got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
                want = model(**model.arguments(request)).numpy()
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def rounded(table: Tensor, kind: Stored) -> Tensor:
    """A table as it comes back from what is stored."""
    stored, *pairs = lower(table, kind)
    return stored.float() if not pairs else stored.float() * pairs[0][:, :1] + pairs[0][:, 1:]


@pytest.mark.parametrize(("precision", "kind"), [("fp16", "float16"), ("int8", "int8 rows")])
@pytest.mark.parametrize("name", ["microrec_47", "dlrm"])
@pytest.mark.usefixtures("on_cpu")
def test_tables_stored_in_a_lower_type_are_grouped(
    captured: Capture, name: str, precision: str, kind: Stored
) -> None:
    """And refreshed alone: the kernel reads what is stored, and gives float32."""
    model = MODELS[name].factory(rows_scale=1e-4)
    path = captured(model, buckets=[2, 8], rewrites=GROUPED, table_precision=precision)
    manifest = open_artifact(path).manifest
    for bucket in manifest.buckets:
        operators = [op for s in bucket.segments for op in s.operators]
        assert sum("grouped_lookup" in op for op in operators) == 1
        assert not any("embedding" in op or "byte" in op for op in operators)
    tables = [name for name, stored in manifest.lowered.items() if stored == kind]
    assert tables
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for table in tables:
            parameters[table].copy_(rounded(parameters[table], kind))
    compare(path, model)
    with Runtime.load(path) as runtime, torch.inference_mode():
        table = tables[1]
        changed = torch.randn_like(parameters[table])
        runtime.update_weights({table: changed.numpy()})
        runtime.update_rows(table, [1], changed[:1].numpy() * 3)
        changed[1] = changed[0] * 3
        parameters[table].copy_(rounded(changed, kind))
        request = model.example_inputs(5, seed=3)
        got = runtime.run(request)
        want = model(**model.arguments(request))
        np.testing.assert_allclose(got["output"], want.numpy(), rtol=1e-4, atol=1e-5)


def test_stacks_of_int8_rows_are_views_of_the_group() -> None:
    ranker = MODELS["microrec_47"].factory(rows_scale=1e-4)
    model = ingest(ranker, ranker.example_inputs(4))
    rewrites = ("stack_lookups", "group_lookups")
    known = survey(model, 2, rewrites, Precision(tables="int8"))
    planned = [
        *plan_buckets(model, [2], Choice(rewrites, "single", 1, "eager"), known, lambda _: None),
        *plan_buckets(
            model, [8], Choice(rewrites[:1], "single", 1, "eager"), known, lambda _: None
        ),
    ]
    weights = weight_tensors(model, planned, known, torch.device("cpu"))
    group, pairs = (weights[f"group_uint8_as_float32{end}"] for end in ("", "_pairs"))
    assert group.dtype == torch.uint8
    assert pairs.shape[1:] == (2,)
    codes = range(group.data_ptr(), group.data_ptr() + group.numel())
    scales = range(pairs.data_ptr(), pairs.data_ptr() + pairs.numel() * 4)
    stacks = [stack for stack in known.tables if stack.name in weights]
    assert len(stacks) > 1
    names = [name for name in model.exported.state_dict if name.startswith("embed.tables.")]
    for name in [*names, *(stack.name for stack in stacks)]:
        assert weights[name].data_ptr() in codes
        assert weights[SCALES + name].data_ptr() in scales
    for name in names:
        stored, pair = lower(model.exported.state_dict[name], INT8)
        assert torch.equal(weights[name], stored)
        assert torch.equal(weights[SCALES + name], pair)
    for stack in stacks:
        for table, start in zip(stack.members, stack.starts, strict=True):
            rows = slice(start, start + len(weights[table]))
            assert torch.equal(weights[stack.name][rows], weights[table])
            assert torch.equal(weights[SCALES + stack.name][rows], weights[SCALES + table])


def test_stacks_and_tables_are_views_of_the_group() -> None:
    """As where the tuner took grouped lookups for one bucket and stacked ones for another."""
    ranker = MODELS["microrec_47"].factory(rows_scale=1e-4)
    model = ingest(ranker, ranker.example_inputs(4))
    rewrites = ("stack_lookups", "group_lookups")
    known = survey(model, 2, rewrites)
    planned = [
        *plan_buckets(model, [2], Choice(rewrites, "single", 1, "eager"), known, lambda _: None),
        *plan_buckets(
            model, [8], Choice(rewrites[:1], "single", 1, "eager"), known, lambda _: None
        ),
    ]
    weights = weight_tensors(model, planned, known, torch.device("cpu"))
    group, stack = weights["group_float32"], weights["stack_float32_8"]
    span = range(group.data_ptr(), group.data_ptr() + group.numel() * 4)
    assert stack.data_ptr() in span
    for name, value in model.exported.state_dict.items():
        if name.startswith("embed.tables."):
            assert torch.equal(weights[name], value)
            assert weights[name].is_contiguous()
            assert weights[name].data_ptr() in span
            assert (weights[name].data_ptr() - group.data_ptr()) % 64 == 0
    (eights,) = [s for s in known.tables if s.name == "stack_float32_8"]
    inside = [weights[name].data_ptr() - stack.data_ptr() for name in eights.members]
    assert inside == [start * 8 * 4 for start in eights.starts]


def test_buckets_share_a_package() -> None:
    """Everything that depends on the batch is linear in it, but for what is data."""
    model = ingest(
        *(lambda m: (m, m.example_inputs(4)))(MODELS["dlrm"].factory(rows_scale=1e-4, lookups=4))
    )
    choice = Choice(("group_lookups",), "single", 1, "eager")
    known = survey(model, 1, choice.rewrites)
    planned = plan_buckets(model, [1, 64, 128, 256], choice, known, lambda _: None)
    codes, keys = share({p.program.bucket: p.segments for p in planned}, dynamic=True)
    assert keys[64] == keys[128] == keys[256] != keys[1]
    assert isinstance(codes[keys[64][0]], DynamicCode)
    (segment,) = planned[1].segments
    assert [segment.inputs[i] for i in segment.code.tables] == ["weight:group_float32"]
