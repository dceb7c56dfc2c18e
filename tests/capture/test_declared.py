"""What capture is told of inputs: jagged values, the user side, int32 ids; refused where wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recreplay.capture import Jagged, capture
from recreplay.capture.compilers.toolchain import inductor_problem
from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.stack_lookups import plan_stacks, stack_lookups
from recreplay.capture.specialise import specialise
from recreplay.capture.user_side import for_eager
from recreplay.models import two_tower
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import CaptureError, UnsupportedModelError
from recreplay.runtime.manifest import Manifest

aten = torch.ops.aten
Capture = Callable[..., Path]


class Model(nn.Module):
    """`forward` by a function of a table, a weight and named inputs."""

    def __init__(self, run: Callable[[Tensor, Tensor, dict[str, Tensor]], Any]) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table = nn.Parameter(torch.randn(20, 4))
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.run = run

    def forward(self, x: dict[str, Tensor]) -> Any:
        return self.run(self.table, self.weight, x)


LENGTHS = torch.tensor([2, 0, 3, 2])
OFFSETS = torch.tensor([0, 2, 2, 5, 7])
EXAMPLE: dict[str, Tensor] = {
    "x_u": torch.randint(0, 20, (4,)),
    "x_s": torch.randint(0, 20, (4, 3)),
    "x_c": torch.randint(0, 20, (4,)),
    "x_v": torch.randint(0, 20, (7,)),
    "x_o": OFFSETS,
}
V = Jagged("x_v", offsets="x_o")


def some(*names: str, **more: Tensor) -> dict[str, Tensor]:
    return {f"x_{n}": EXAMPLE[f"x_{n}"] for n in names} | {f"x_{k}": v for k, v in more.items()}


# The user side


def program(run: Any, example: dict[str, Tensor], bucket: int = 4, **told: Any) -> Program:
    return specialise(ingest(Model(run).eval(), example, **told), bucket)


def shapes(made: Program, target: Any) -> list[tuple[int, ...]]:
    return [tuple(n.meta["val"].shape) for n in made.graph.nodes if n.target == target]


def tower(table: Tensor, weight: Tensor, x: dict[str, Tensor]) -> Tensor:
    user = F.linear(table[x["s"]].sum(1), weight).relu() + F.embedding(x["u"], table)
    return user * F.embedding(x["c"], table)


def flattened(table: Tensor, weight: Tensor, x: dict[str, Tensor]) -> Tensor:
    """A value of 3 rows per row meets the candidates."""
    rows = F.linear(F.embedding(x["s"], table).flatten(0, 1), weight)
    return (rows * F.embedding(x["c"], table).repeat_interleave(3, 0)).view(-1, 3, 4).sum(1)


def turned(table: Tensor, weight: Tensor, x: dict[str, Tensor]) -> Tensor:
    """The batch is the last dimension where the candidates are met."""
    return (F.embedding(x["u"], table).t() * F.embedding(x["c"], table).t()).t()


def flat_inside(table: Tensor, weight: Tensor, x: dict[str, Tensor]) -> Tensor:
    rows = F.linear(F.embedding(x["s"], table).flatten(0, 1), weight).view(-1, 3, 4)
    return rows.sum(1) + F.embedding(x["c"], table)


@pytest.mark.parametrize("users", [1, 3])
def test_what_depends_on_the_user_alone_runs_once_per_user(users: int) -> None:
    made = program(tower, some("u", "s", "c"), 8, user_inputs=["x_u", "x_s"], users=users)
    assert shapes(made, aten.linear.default) == [(users, 4)]
    assert shapes(made, aten.relu.default) == [(users, 4)]
    assert sorted(shapes(made, aten.embedding.default)) == [(users, 4), (8, 4)]
    brought = aten.expand.default if users == 1 else aten.index_select.default
    assert shapes(made, brought) == [(8, 4)]  # the sum of both, and nothing before it


def test_one_row_for_one_user_needs_nothing_brought() -> None:
    made = program(tower, some("u", "s", "c"), 1, user_inputs=["x_u", "x_s"])
    assert shapes(made, aten.expand.default) == []


def test_a_value_of_other_rows_stays_with_the_candidates_unless_it_stays_inside() -> None:
    told = {"user_inputs": ["x_s"], "users": 2}
    moved = program(flattened, some("s", "c"), 8, **told)
    assert shapes(moved, aten.embedding.default)[0] == (2, 3, 4)
    assert shapes(moved, aten.linear.default) == [(24, 4)]
    kept = program(flat_inside, some("s", "c"), 8, **told)
    assert shapes(kept, aten.linear.default) == [(6, 4)]


def squeezed(table: Tensor, weight: Tensor, x: dict[str, Tensor]) -> Tensor:
    """Of the dimensions of one item, rows are none, however many there are."""
    user = F.embedding(x["s"], table).sum(1, keepdim=True).squeeze()
    return user.squeeze(0) * F.embedding(x["c"], table)


def attention(table: Tensor, weight: Tensor, x: dict[str, Tensor]) -> Tensor:
    """The heads of the user's keys are laid side by side behind the candidates' boundary."""
    query, key = F.embedding(x["c"], table), F.embedding(x["s"], table)
    found, _ = F.multi_head_attention_forward(
        *(query.unsqueeze(0), key.transpose(0, 1), key.transpose(0, 1), 4, 2),
        *(weight.repeat(3, 1), torch.zeros(12), None, None, False, 0.0, weight, None),
        training=False,
        key_padding_mask=x["s"] == 0,
    )
    return found[0]


@pytest.mark.parametrize("users", [1, 2])
@pytest.mark.parametrize("run", [tower, flattened, turned, flat_inside, squeezed, attention])
def test_any_boundary_equals_eager(captured: Capture, run: Any, users: int) -> None:
    model = Model(run)
    names = {tower: "usc", turned: "uc"}.get(run, "sc")
    shared = [f"x_{n}" for n in names if n in "us"]
    path = captured(model, some(*names), user_inputs=shared, users=users)
    manifest = open_artifact(path).manifest
    with Runtime.load(path) as runtime:
        for rows in (1, 2, 4, 9):
            request = {s.name: torch.randint(0, 20, (rows, *s.row)) for s in manifest.inputs}
            request |= {name: request[name][:1].repeat_interleave(users, 0) for name in shared}
            if users > 1:
                for name in shared:
                    request[name][1] = 7
                request["user_index"] = torch.arange(rows) % users
            got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
            tiled = for_eager(manifest.inputs, request, rows)
            with torch.inference_mode():
                want = model({k.removeprefix("x_"): v for k, v in tiled.items()})
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


def test_outputs_of_the_user_alone_have_a_row_for_each_candidate(captured: Capture) -> None:
    model = Model(lambda t, w, x: (F.embedding(x["u"], t), F.embedding(x["c"], t)))
    path = captured(model, some("u", "c"), user_inputs=["x_u"])
    with Runtime.load(path) as runtime:
        got = runtime.run({"x_u": np.array([7]), "x_c": np.array([1, 2, 3])})
    np.testing.assert_array_equal(got["output_0"], model.table[[7, 7, 7]].detach().numpy())


def test_rows_of_users_that_are_mixed_are_refused(captured: Capture) -> None:
    model = Model(lambda t, w, x: t[x["u"]] + t[x["u"]].sum(0) + t[x["c"]])
    with pytest.raises(
        UnsupportedModelError, match=r"^output 'output' of a row depends on other rows of the requ"
    ):
        captured(model, some("u", "c"), user_inputs=["x_u"])


def test_lookups_of_the_user_are_stacked_with_each_other() -> None:
    class Shop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(10 + i, 4) for i in range(4))

        def forward(self, ids: list[Tensor]) -> Tensor:
            return torch.cat([t(i).sum(1) for t, i in zip(self.tables, ids, strict=True)], 1)

    example = {f"ids_{i}": torch.randint(0, 10, (4, 3)) for i in range(4)}
    for bucket in (1, 4):  # one row and one user look alike in bucket 1
        made = specialise(ingest(Shop().eval(), example, user_inputs=["ids_1", "ids_2"]), bucket)
        stack_lookups(made, plan_stacks(made))
        assert sorted(made.staged.values()) == [("ids_0", "ids_3"), ("ids_1", "ids_2")]
        bags = [n for n in made.graph.nodes if n.target is aten.embedding_bag.padding_idx]
        assert len(bags) == 2


def test_equal_towers_in_bucket_one_and_others(captured: Capture) -> None:
    """In bucket 1 the towers of one user and of one candidate have equal shapes."""

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.tables = nn.ModuleList(nn.Embedding(10, 8) for _ in range(2))
            self.towers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            a, b = (
                w(t(i)).relu()
                for w, t, i in zip(self.towers, self.tables, (user, item), strict=True)
            )
            return (a * b).sum(1)

    model = Twins()
    example = {"user": torch.randint(0, 10, (4,)), "item": torch.randint(0, 10, (4,))}
    path = captured(model, example, user_inputs=["user"], buckets=[1, 4])
    with Runtime.load(path) as runtime, torch.inference_mode():
        for rows in (1, 3, 4):
            item = torch.randint(0, 10, (rows,))
            got = runtime.run({"user": np.array([3]), "item": item.numpy()})["output"]
            want = model(torch.full((rows,), 3), item).numpy()
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# What is refused


def bag(table: Tensor, weight: Tensor, x: dict[str, Tensor]) -> Tensor:
    return F.embedding_bag(x["v"], table, x["o"], mode="sum", include_last_offset=True)


def refuse(run: Any, example: dict[str, Tensor], text: str, **told: Any) -> None:
    with pytest.raises(CaptureError, match=f"^{re.escape(text)}"):
        ingest(Model(run).eval(), example, **told)


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (
            {"user_inputs": ["x_w"]},
            "the model has no input 'x_w'; its inputs are x_u, x_c, x_v, x_o",
        ),
        ({"user_inputs": ["x_u"], "users": 0}, "users must be 1 or more; got 0"),
        ({"users": 3}, "users=3 needs user_inputs: which inputs have a row a user"),
        ({"jagged": [V, V]}, "input 'x_v' is declared as jagged in two ways"),
        (
            {"jagged": [V], "user_inputs": ["x_v"]},
            "jagged input 'x_v' and its 'x_o' must both be user inputs, or neither",
        ),
        (
            {"jagged": [V], "user_inputs": ["x_u", "x_c", "x_v", "x_o"]},
            "all inputs are user inputs, so nothing says how many rows a request has",
        ),
        (
            {"jagged": [Jagged("x_v", lengths="x_o")]},
            "example lengths 'x_o' add up to 16; 'x_v' has 7 values",
        ),
        (
            {"jagged": [Jagged("x_o", offsets="x_v")]},
            "example offsets 'x_v' have 7 items for a batch of 4; expected 5, or 4 without the "
            "number of values at the end",
        ),
        ({}, "example inputs have different batch sizes"),
    ],
)
def test_declarations_that_make_no_sense(told: dict[str, Any], text: str) -> None:
    refuse(bag, some("u", "c", "v", "o"), text, **told)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"o": torch.tensor([0, 2, 1, 5, 7])}, "example offsets 'x_o' do not divide the 7 values"),
        ({"o": torch.tensor([0, 2, 2, 5, 6])}, "example offsets 'x_o' do not divide the 7 values"),
        ({"o": OFFSETS.float()}, "input 'x_o' has dtype torch.float32; expected int64 or int32"),
        (
            {"v": torch.zeros(7, 1, dtype=torch.int64)},
            "jagged input 'x_v' has shape (7, 1); values, offsets and lengths have one dimension",
        ),
        (
            {"v": torch.zeros(1, dtype=torch.int64), "o": torch.tensor([0, 1, 1, 1, 1])},
            "example input 'x_v' has 1 values; 2 or more are needed, because torch.export takes",
        ),
    ],
)
def test_examples_that_do_not_fit(changes: dict[str, Tensor], text: str) -> None:
    refuse(bag, some("c", "v", "o", **changes), text, jagged=[V])


def test_a_declaration_needs_one_division() -> None:
    with pytest.raises(CaptureError, match="needs either offsets or lengths; got both"):
        Jagged("v", offsets="o", lengths="l")
    with pytest.raises(CaptureError, match="needs either offsets or lengths; got neither"):
        Jagged("v")
    with pytest.raises(CaptureError, match="the capacity of jagged input 'v' is 0; expected 1 or"):
        Jagged("v", offsets="o", capacity=0)


def of_all(values: Tensor) -> Tensor:
    return F.layer_norm(values.float(), [values.shape[0]]).long()


@pytest.mark.parametrize(
    ("operator", "run"),
    [
        ("aten.cumsum.default", lambda t, w, x: x["v"].cumsum(0)),
        ("aten.sum.default", lambda t, w, x: x["v"] + x["v"].sum()),
        ("aten.sort.default", lambda t, w, x: x["v"].sort().values),
        ("aten.select.int", lambda t, w, x: x["v"] + x["v"][0]),
        ("aten.mul.Tensor", lambda t, w, x: (x["v"].float() * x["v"].shape[0]).long()),
        ("aten.softmax.int", lambda t, w, x: x["v"].float().softmax(0).long()),
        ("aten.layer_norm.default", lambda t, w, x: of_all(x["v"])),
        ("aten.transpose.int", lambda t, w, x: F.embedding(x["v"], t).mT[0].long()),
        ("aten.matmul.default", lambda t, w, x: x["v"] + (x["v"].float() @ x["v"].float()).long()),
    ],
)
def test_operators_that_mix_values_are_refused_by_name(operator: str, run: Any) -> None:
    def model(table: Tensor, weight: Tensor, x: dict[str, Tensor]) -> Tensor:
        return F.embedding_bag(run(table, weight, x) % 20, table, x["o"][:-1], mode="sum")

    with pytest.raises(
        UnsupportedModelError,
        match=rf"^operator {re.escape(operator)} at .*: the values of jagged input 'x_v' are .*; "
        "before embedding_bag pools them by row, only what works on each value by itself can be "
        "captured: elementwise operators, views, embedding, and layers over other dimensions$",
    ):
        ingest(Model(model).eval(), some("c", "v", "o"), jagged=[V])


def test_a_jagged_user_input_must_be_pooled_before_it_meets_candidates() -> None:
    def run(table: Tensor, weight: Tensor, x: dict[str, Tensor]) -> Tensor:
        ids = x["v"] + x["c"].sum() * 0
        return F.embedding_bag(ids, table, x["o"], mode="sum", include_last_offset=True)

    model = ingest(Model(run).eval(), some("c", "v", "o"), jagged=[V], user_inputs=["x_v", "x_o"])
    with pytest.raises(UnsupportedModelError, match=r"^user input 'x_[vo]' is jagged and is read"):
        specialise(model, 4)


# Jagged values


def test_capacity_is_twice_the_mean_unless_given() -> None:
    model = ingest(Model(bag).eval(), some("c", "v", "o"), jagged=[V])
    assert [s.capacity for s in model.inputs] == [0, 4, 0]  # 2 x 7 / 4, rounded up
    assert [s.kind for s in model.inputs] == ["rows", "values", "offsets"]
    asked = Jagged("x_v", offsets="x_o", capacity=9)
    model = ingest(Model(bag).eval(), some("c", "v", "o"), jagged=[asked])
    made = specialise(model, 3)
    assert next(s for s in model.inputs if s.kind == "values").capacity == 9
    assert shapes(made, "input:x_v") == [(27,)]
    assert shapes(made, "input:x_o") == [(5,)]  # 4 offsets, and the capacity


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("division", ["offsets", "starts", "lengths"])
def test_every_mode_and_division(
    captured: Capture, mode: str, dtype: torch.dtype, division: str
) -> None:
    def run(table: Tensor, weight: Tensor, x: dict[str, Tensor]) -> Tensor:
        table = table.to(dtype)
        if division == "offsets":
            return F.embedding_bag(x["v"], table, x["o"], mode=mode, include_last_offset=True)
        starts = x["o"] if division == "starts" else x["o"].cumsum(0) - x["o"]
        return F.embedding_bag(x["v"], table, starts, mode=mode)

    given = {"offsets": OFFSETS, "starts": OFFSETS[:-1], "lengths": LENGTHS}[division]
    kind = "lengths" if division == "lengths" else "offsets"
    model = Model(run)
    path = captured(model, some("v", o=given), jagged=[Jagged("x_v", **{kind: "x_o"})])
    values = EXAMPLE["x_v"]
    with Runtime.load(path) as runtime:
        got = runtime.run({"x_v": values.numpy(), "x_o": given.numpy()})["output"]
    np.testing.assert_allclose(got, model({"v": values, "o": given}).detach().numpy(), rtol=1e-4)


class Basket(nn.Module):
    """Jagged features of two widths and modes, with lengths, starts and offsets of their own."""

    def __init__(self, widths: tuple[int, ...], mode: str) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.mode = mode
        self.tables = nn.ModuleList(nn.Embedding(10 + i, w) for i, w in enumerate(widths))

    def forward(self, item: Tensor, values: list[Tensor], divisions: list[Tensor]) -> Tensor:
        parts = [item.unsqueeze(1).to(torch.float32)]
        for i, (table, ids, by) in enumerate(zip(self.tables, values, divisions, strict=True)):
            starts = by.cumsum(0) - by if i % 3 == 2 else by
            end = i % 3 == 0
            parts.append(
                F.embedding_bag(ids, table.weight, starts, mode=self.mode, include_last_offset=end)
            )
        return torch.cat(parts, 1)

    def request(self, lengths: list[np.ndarray[Any, Any]], draw: Any) -> dict[str, Tensor]:
        request = {"item": torch.arange(len(lengths[0]))}
        for i, count in enumerate(lengths):
            ends = np.concatenate([[0], np.cumsum(count)])
            ids = draw.integers(0, 10 + i, int(count.sum()))
            dtype = torch.int32 if i % 2 else torch.int64
            request[f"values_{i}"] = torch.from_numpy(ids).to(dtype)
            request[f"divisions_{i}"] = torch.from_numpy([ends, ends[:-1], count][i % 3])
        return request

    def jagged(self, capacity: int) -> list[Jagged]:
        kinds = ("offsets", "offsets", "lengths")
        return [
            Jagged(f"values_{i}", **{kinds[i % 3]: f"divisions_{i}"}, capacity=capacity + i)
            for i in range(len(self.tables))
        ]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_jagged_lookups_of_one_width_are_one(captured: Capture, mode: str) -> None:
    model = Basket((4, 4, 4, 8, 4, 8), mode).eval()
    draw = np.random.default_rng(1)
    example = model.request([draw.integers(1, 5, 4) for _ in model.tables], draw)
    path = captured(model, example, jagged=model.jagged(3))
    operators = [op for s in open_artifact(path).manifest.buckets[0].segments for op in s.operators]
    assert sum("embedding_bag" in op for op in operators) == 2  # one a width
    with Runtime.load(path) as runtime, torch.inference_mode():
        for rows in (1, 2, 3, 4, 9, 4, 4):
            request = model.request([draw.integers(0, 4, rows) for _ in model.tables], draw)
            got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
            want = model(
                request["item"],
                *([request[f"{k}_{i}"] for i in range(6)] for k in ("values", "divisions")),
            )
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-6)


# int32


class Narrow(nn.Module):
    """Ids of both widths, some widened by the model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.tables = nn.ModuleList(nn.Embedding(10 + i, 4) for i in range(3))

    def forward(self, ids: list[Tensor]) -> Tensor:
        a, b, c = (t(i) for t, i in zip(self.tables, (ids[0], ids[1].long(), ids[2]), strict=True))
        return torch.cat([a, b, c], 1)


@pytest.mark.parametrize("last", [torch.int32, torch.int64])
def test_int32_ids_stay_int32_and_are_stacked(captured: Capture, last: torch.dtype) -> None:
    model = Narrow()
    dtypes = [torch.int32, torch.int32, last]
    example = {f"ids_{i}": torch.randint(0, 10, (4,)).to(d) for i, d in enumerate(dtypes)}
    path = captured(model, example)
    manifest: Manifest = open_artifact(path).manifest
    assert [s.dtype for s in manifest.inputs] == [str(d).removeprefix("torch.") for d in dtypes]
    assert {s.dtype for b in manifest.buckets for s in b.staged} == {"int32"}
    operators = [op for s in manifest.buckets[0].segments for op in s.operators]
    assert sum(op.startswith("embedding") for op in operators) == 1
    ids = [np.array([1, 9, 4]), np.array([3, 10, 0]), np.array([11, 0, 7])]
    with Runtime.load(path) as runtime:
        want = model([torch.from_numpy(i) for i in ids]).detach().numpy()
        for kinds in (("i8", "i8", "i8"), ("i4", "i8", "i4"), ("i2", "i4", "i4")):
            request = {
                f"ids_{i}": x.astype(k) for i, (x, k) in enumerate(zip(ids, kinds, strict=True))
            }
            np.testing.assert_allclose(runtime.run(request)["output"], want, rtol=1e-5)


# Compiled


@pytest.mark.inductor
@pytest.mark.skipif(inductor_problem("cpu") is not None, reason="no C++ compiler")
def test_two_tower_compiled(tmp_path: Path) -> None:
    model = two_tower(rows_scale=1e-3, dim=8, tower=(16, 8), top=(8, 1), lengths=(6.0, 3.0, 2.0))
    out = tmp_path / "tower.rr"
    capture(model, out=out, buckets=[1, 4, 8], compiler="inductor", user_inputs=model.user_inputs)
    manifest = open_artifact(out).manifest
    assert len(manifest.packages) == 2  # bucket 1, and one for the others
    draw = np.random.default_rng(3)
    with Runtime.load(out) as runtime:
        for seed in range(40):
            rows = int(draw.integers(1, 20))
            request = model.example_inputs(rows, seed)
            one = model.example_inputs(1, seed)
            if any(len(one[k]) > 2 * n for k, n in (("watched", 6), ("searched", 3))):
                continue  # a longer history than a user has room for
            request |= {k: one[k] for k in model.user_inputs}
            got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
            with torch.inference_mode():
                want = model(**model.arguments(for_eager(manifest.inputs, request, rows)))
            assert got.shape == tuple(want.shape)
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)
        assert runtime.stats()["requests"] > 20
