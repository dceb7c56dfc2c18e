"""Ids that are staged as int32 where their tables bound them; requests have the model's dtypes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_declared import Basket, tower
from test_declared import Model as Declared
from test_rewrites import CASES, Model, check, ids, targets
from torch import Tensor

from recreplay.capture.features import branches
from recreplay.capture.ingest import ingest
from recreplay.capture.lookups import find_lookups, id_bounds
from recreplay.capture.program import Program
from recreplay.capture.rewrites import narrow_ids as rewrite
from recreplay.capture.rewrites.narrow_ids import narrow_ids, narrowed
from recreplay.capture.specialise import specialise
from recreplay.capture.user_side import for_eager
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import IdRangeError
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.spec import IdBound, InputSpec

Capture = Callable[..., Path]
aten = torch.ops.aten


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of one id a feature are narrowed as well."""
    monkeypatch.setitem(rewrite._LEAST, "cpu", 1)


def staged(path: Path) -> dict[str, str]:
    """The dtype of each input in staging memory, the same in all buckets."""
    buckets = open_artifact(path).manifest.buckets
    found = {
        slot.name: {s.dtype for b in buckets for s in b.inputs if s.name == slot.name}
        for slot in buckets[0].inputs
    }
    assert all(len(dtypes) == 1 for dtypes in found.values())
    return {name: dtypes.pop() for name, dtypes in found.items()}


MOST = 2**31  # rows of a table whose ids fit


@pytest.mark.parametrize(
    ("spec", "bounds", "narrow"),
    [
        (InputSpec("a", "int64", (5,)), [(None, 9)], True),
        (InputSpec("a", "int64", (5,)), [(None, MOST)], True),
        (InputSpec("a", "int64", (5,)), [(None, MOST + 1)], False),
        (InputSpec("a", "int64", (5,)), [], False),  # read by something else than a lookup
        (InputSpec("a", "int64", (4,)), [(c, 9) for c in range(4)], True),
        (InputSpec("a", "int64", (4,)), [(c, 9) for c in range(3)], False),
        (InputSpec("a", "int64", (4,)), [(0, MOST + 1), *((c, 9) for c in (1, 2, 3))], False),
        (InputSpec("a", "float32", (4,)), [(c, 9) for c in range(4)], False),
        (InputSpec("a", "int32", (5,)), [(None, 9)], False),  # already
        (InputSpec("a", "int64", (), "values", along="o", capacity=4), [(None, 9)], True),
        (InputSpec("a", "int64", ()), [(None, 9)], False),  # one id a row, which gains nothing
    ],
)
def test_what_is_narrowed(
    spec: InputSpec, bounds: list[tuple[int | None, int]], narrow: bool
) -> None:
    known = [IdBound("a", column, rows, "t") for column, rows in bounds]
    assert narrowed([spec], known, "cpu") == (frozenset("a") if narrow else frozenset())


def test_all_inputs_or_none() -> None:
    """Lookups that are stacked want one dtype, so that one id goes with many; on CUDA the link
    counts, and any do."""
    one, many = InputSpec("a", "int64", ()), InputSpec("b", "int64", (7,))
    bounds = [IdBound(name, None, 9, "t") for name in "ab"]
    assert narrowed([one, many], bounds, "cpu") == frozenset("ab")
    assert narrowed([one], bounds, "cpu") == frozenset()
    assert narrowed([one], bounds, "cuda") == frozenset("a")


def program(run: Any, tables: dict[str, tuple[int, int]], **example: Tensor) -> Program:
    model = ingest(Model(tables, run).eval(), {f"x_{k}": v for k, v in example.items()})
    made = specialise(model, 4)
    narrow_ids(made, narrowed(model.inputs, id_bounds(made)[0], "cuda"))
    return made


def test_lookups_read_int32_and_nothing_widens_it() -> None:
    """Whole, by column and put together; the divisions of bags are int32 then."""
    made = program(
        lambda t, x: torch.cat(
            [
                F.embedding_bag(x["a"], t.a, mode="sum"),
                F.embedding(x["b"][:, 1], t.a) + F.embedding(x["b"][:, 0], t.b),
                F.embedding(torch.stack([x["c"], x["d"]], 1), t.b).flatten(1),
            ],
            1,
        ),
        {"a": (20, 4), "b": (9, 4)},
        **{"a": ids(4, 20, 3), "b": ids(4, 9, 2), "c": ids(4, 9), "d": ids(4, 9)},
    )
    dtypes = {n.meta["val"].dtype for n in made.graph.find_nodes(op="placeholder")}
    assert dtypes == {torch.float32, torch.int32}
    assert all(lookup.ids.meta["val"].dtype == torch.int32 for lookup in find_lookups(made))
    assert aten.to.dtype not in targets(made)
    found = {b for b in branches(made).values() if b is not None}
    assert {"x_b[:, 0]", "x_b[:, 1]"} <= found  # columns are still features of their own


def test_what_else_reads_ids_sees_them_as_the_model_does() -> None:
    made = program(
        lambda t, x: F.embedding(x["a"], t.a) * (x["a"] * 3_000_000_000 % 7).unsqueeze(1).float(),
        {"a": (20, 4)},
        a=ids(4, 20),
    )
    assert next(iter(find_lookups(made))).ids.meta["val"].dtype == torch.int32
    product = next(n for n in made.graph.nodes if n.target == aten.mul.Tensor)
    assert product.meta["val"].dtype == torch.int64


@pytest.mark.parametrize(
    "name",
    [
        "bags of mixed length",
        "sum, mean and none",
        "embedding and sum or mean",
        "a table shared by two inputs",
        "an input that feeds two tables",
        "int32 ids",
        "ids found by a lookup",
        "an input read whole and by column",
    ],
)
@pytest.mark.usefixtures("as_on_cuda")
def test_replay_equals_eager(name: str, captured: Capture) -> None:
    case = CASES[name]
    model = Model(case.tables, case.run)
    path = captured(model, {f"x_{k}": v for k, v in case.draw(4).items()})
    assert "int64" not in staged(path).values()
    check(path, model, case.draw)


@pytest.mark.usefixtures("as_on_cuda")
def test_jagged_values(captured: Capture) -> None:
    model = Basket((4, 4, 4, 8, 4, 8), "sum").eval()
    draw = np.random.default_rng(1)
    example = model.request([draw.integers(1, 5, 4) for _ in model.tables], draw)
    path = captured(model, example, jagged=model.jagged(3))
    assert {staged(path)[f"values_{i}"] for i in range(6)} == {"int32"}
    manifest: Manifest = open_artifact(path).manifest
    assert {s.dtype for s in manifest.inputs if s.kind == "values"} == {"int32", "int64"}
    with Runtime.load(path) as runtime, torch.inference_mode():
        for rows in (1, 2, 4, 9):
            request = model.request([draw.integers(0, 4, rows) for _ in model.tables], draw)
            got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
            want = model(
                request["item"],
                *([request[f"{k}_{i}"] for i in range(6)] for k in ("values", "divisions")),
            )
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-6)
        request = {k: v.numpy() for k, v in request.items()}
        values, offsets = request["values_0"].copy(), request["divisions_0"]
        row = int(np.flatnonzero(np.diff(offsets))[-1])
        values[offsets[row]] = 2**32 + 5
        message = rf"^input 'values_0', row {row}, position 0: id 4294967301 is out of range"
        with pytest.raises(IdRangeError, match=message):
            runtime.run(request | {"values_0": values})
    last = request | {"values_0": np.where(values > 9, 9, values)}
    with Runtime.load(path, check="clamp") as runtime:
        got, want = (runtime.run(r)["output"] for r in (request | {"values_0": values}, last))
        np.testing.assert_array_equal(got, want)
        assert runtime.stats()["clamped_ids"] == 1


@pytest.mark.parametrize("users", [1, 3])
@pytest.mark.usefixtures("as_on_cuda")
def test_the_user_side(captured: Capture, users: int) -> None:
    model, shared = Declared(tower), ["x_u", "x_s"]
    example = {"x_u": ids(4, 20), "x_s": ids(4, 20, 3), "x_c": ids(4, 20)}
    path = captured(model, example, user_inputs=shared, users=users)
    assert {staged(path)[name] for name in example} == {"int32"}
    with Runtime.load(path) as runtime, torch.inference_mode():
        for rows in (1, 3, 9):
            request = {"x_u": ids(users, 20), "x_s": ids(users, 20, 3), "x_c": ids(rows, 20)}
            if users > 1:
                request["user_index"] = torch.arange(rows) % users
            got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
            tiled = for_eager(runtime.manifest.inputs, request, rows)
            want = model({k.removeprefix("x_"): v for k, v in tiled.items()})
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)
        request["x_s"][users - 1, 1] = -(2**32) + 3
        message = rf"^input 'x_s', row {users - 1}, position 1: id -4294967293 is out of range"
        with pytest.raises(IdRangeError, match=message):
            runtime.run(request)


@pytest.mark.parametrize("check", ["error", "clamp", "off"])
@pytest.mark.usefixtures("as_on_cuda")
def test_ids_of_columns_never_become_others(captured: Capture, check: Any) -> None:
    """Every column has a table of its own, and ids are taken as int32 and int64."""
    tables = {k: (9 + i, 4) for i, k in enumerate("abcd")}
    model = Model(
        tables,
        lambda t, x: torch.cat([F.embedding(x["m"][:, i], t[k]) for i, k in enumerate("abcd")], 1),
    )
    path = captured(model, {"x_m": ids(4, 9, 4)})
    assert staged(path) == {"x_m": "int32"}
    good = ids(3, 9, 4)
    with Runtime.load(path, check=check) as runtime, torch.inference_mode():
        want = model({"m": good}).numpy()
        for request in (good, good.int(), good.numpy()[::-1][::-1], good.numpy().astype("u2")):
            np.testing.assert_array_equal(runtime.run({"x_m": request})["output"], want)
        bad = good.numpy().copy()
        bad[2, 3] = 2**32 + 5
        if check == "clamp":
            assert runtime.run({"x_m": bad})["output"].shape == (3, 16)
            assert runtime.stats()["clamped_ids"] == 1
            return
        with pytest.raises(IdRangeError, match=r"^input 'x_m' column 3, row 2: id 4294967301 is "):
            runtime.run({"x_m": bad})
        with runtime.borrow(3) as borrowed:
            borrowed.inputs["x_m"][:] = bad
            with pytest.raises(IdRangeError, match="'x_m' column 3, row 2: id 4294967301 is out"):
                borrowed.run()
