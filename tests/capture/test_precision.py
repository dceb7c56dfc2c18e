"""Lowered precision, captured and replayed: errors within the bound, bytes, refreshes, refusals."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from recreplay.capture import capture
from recreplay.capture.declared import Jagged
from recreplay.capture.ingest import ingest
from recreplay.capture.lowering import find_lowering
from recreplay.capture.onnx_export import export_onnx
from recreplay.capture.precision import Precision
from recreplay.capture.rewrites.inline_linears import inline_linears
from recreplay.capture.rewrites.lower_products import lower_products
from recreplay.capture.specialise import specialise
from recreplay.capture.writer import seal
from recreplay.models import MODELS
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import CaptureError, IdRangeError, ParityError, RefreshError
from recreplay.runtime.manifest import Manifest

Capture = Callable[..., Path]

needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here"
)
# What makes a model small enough for a test, all else as published.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "din": {"length": 6},
    "dlrm": {"tables": 4},
    "mt_wide_deep": {"tasks": 2},
    "ncf": {},
    "streamrec": {"features": 5, "lookups": 4},
}
LOWERED = [("bf16", "int8"), ("fp32", "fp16")]


def model_of(name: str, seed: int = 1) -> Any:
    return MODELS[name].factory(rows_scale=1e-4, seed=seed, **ARGUMENTS[name])


def scaled_gap(got: np.ndarray, want: Tensor) -> float:
    return float(np.abs(got - want.numpy()).max() / want.abs().max())


def answers(model: Any, request: dict[str, Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        answer = model(**model.arguments(request))
    return list(answer.values()) if isinstance(answer, dict) else [answer]


def compare(runtime: Runtime, model: Any, rows: int, most: float) -> float:
    """The largest error of a request over the scale of its output, which must be below `most`."""
    request = model.example_inputs(rows, seed=rows)
    got = runtime.run({k: v.numpy() for k, v in request.items()})
    gaps = [
        scaled_gap(output, want)
        for output, want in zip(got.values(), answers(model, request), strict=True)
    ]
    assert max(gaps) < most
    return max(gaps)


@needs_bf16
@pytest.mark.parametrize(("precision", "tables"), LOWERED)
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_models_are_within_the_bound_and_refreshed(
    name: str, precision: str, tables: str, tmp_path: Path
) -> None:
    one, other = model_of(name, seed=1), model_of(name, seed=2)
    out = tmp_path / "m.rr"
    manifest = capture(
        one,
        out=out,
        buckets=[1, 2, 8],
        compiler="eager",
        precision=precision,
        table_precision=tables,
    )
    assert manifest == open_artifact(out).manifest
    assert (manifest.precision, manifest.table_precision) == (precision, tables)
    bound = {"bf16": 0.02, "fp32": 0.0}[precision] + {"int8": 0.02, "fp16": 0.002}[tables]
    assert manifest.max_error == pytest.approx(bound)
    for parity in manifest.parity:
        for output in parity.outputs:
            assert 0 < output.max_abs < bound * output.scale
    with Runtime.load(out) as runtime:
        for rows in (1, 3, 20):
            assert compare(runtime, one, rows, 2 * bound) > 1e-6  # it is lowered indeed
        known = runtime.weights()
        assert {dtype for dtype, _ in known.values()} == {"float32"}
        assert set(known) == {k for k, _ in other.named_parameters()}
        runtime.update_weights({k: v for k, v in other.state_dict().items() if k in known})
        for rows in (1, 3, 20):
            compare(runtime, other, rows, 2 * bound)


@needs_bf16
@pytest.mark.inductor
@pytest.mark.parametrize(("name", "precision"), [("dlrm", "bf16"), ("din", "fp32")])
def test_compiled_segments(name: str, precision: str, tmp_path: Path) -> None:
    model = model_of(name)
    out = tmp_path / "m.rr"
    capture(
        model,
        out=out,
        buckets=[1, 4, 8],
        compiler="inductor",
        precision=precision,
        table_precision="int8",
    )
    with Runtime.load(out, lanes=2) as runtime:
        for rows in (1, 3, 8, 20):
            compare(runtime, model, rows, 0.04)


def stored(path: Path) -> dict[str, tuple[str, list[int]]]:
    with safe_open(path / "weights.safetensors", "pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (s.get_dtype(), s.get_shape()) for name, s in found.items()}


class Both(nn.Module):
    """A weight that is multiplied and read otherwise too, a tied table, and plain ones of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tied = nn.Embedding(40, 8)
        self.free = nn.Embedding(64, 8)
        self.first = nn.Linear(8, 8)
        self.twice = nn.Parameter(torch.randn(8, 8))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = torch.relu(self.first(self.tied(a) + self.free(b)))
        x = torch.addmm(self.first.bias, x, self.twice, beta=0.5, alpha=2.0) + self.twice.sum(0)
        return x @ self.tied.weight.t()


def both(rows: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = (torch.randint(0, 40, (rows,), generator=draw) for _ in range(2))
    return dict(zip("ab", ids, strict=True))


@needs_bf16
@pytest.mark.parametrize(
    "compiler", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)]
)
def test_weights_that_something_else_reads_stay_float32(captured: Capture, compiler: str) -> None:
    said: list[str] = []
    model = Both().eval()
    path = captured(
        model,
        both(4),
        compiler=compiler,
        precision="bf16",
        table_precision="int8",
        progress=said.append,
    )
    found = {re.sub("#.*", "#", name): kind for name, kind in stored(path).items()}
    assert found == {
        "first.bias": ("F32", [8]),
        "first.weight": ("BF16", [8, 8]),
        "free.weight": ("U8", [64, 8]),
        "scales:free.weight": ("F32", [64, 2]),
        "tied.weight": ("F32", [40, 8]),
        "twice": ("F32", [8, 8]),
        "twice#": ("F32", [8]),  # its sum
    }
    assert open_artifact(path).manifest.lowered == {
        "first.weight": "bfloat16",
        "free.weight": "int8 rows",
    }
    assert (
        "table tied.weight stays in fp32: it is read by more than plain lookups, which int8 is for"
        in said
    )
    with Runtime.load(path) as runtime, torch.no_grad():
        for scale in (1.0, -0.5):
            for name in ("twice", "first.weight", "tied.weight"):
                model.get_parameter(name).mul_(scale)
                runtime.update_weights({name: model.get_parameter(name)})
            for rows in (1, 4, 9):
                request = both(rows, seed=rows)
                got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
                assert 1e-5 < scaled_gap(got, model(**request)) < 0.03


class Bags(nn.Module):
    """Jagged bags of three poolings, and lists of two lengths, over tables of one width."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        modes = ("sum", "mean", "max", "sum")
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(100, 16, mode=mode, include_last_offset=True) for mode in modes
        )
        self.lists = nn.ModuleList(nn.EmbeddingBag(100, 16, mode="sum") for _ in range(3))
        self.one = nn.Embedding(100, 16)

    def forward(self, ids: Tensor, offsets: Tensor, lists: list[Tensor], one: Tensor) -> Tensor:
        jagged = [bag(ids, offsets) for bag in self.bags]
        regular = [bag(x) for bag, x in zip(self.lists, lists, strict=True)]
        return torch.stack([*jagged, *regular, self.one(one)], dim=1)


def bags(rows: int, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def ids(*shape: int) -> Tensor:
        return torch.randint(0, 100, shape, generator=draw)

    lengths = torch.randint(0, 6, (rows,), generator=draw)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    lists = {f"lists_{k}": ids(rows, length) for k, length in enumerate((2, 5, 2))}
    return {"ids": ids(int(lengths.sum())), "offsets": offsets, **lists, "one": ids(rows)}


@pytest.mark.parametrize(
    ("compiler", "rewrites", "tables", "most"),
    [
        ("eager", (), "fp16", 5e-4),
        ("eager", (), "int8", 8e-3),
        ("eager", ("stack_lookups",), "fp16", 5e-4),
        ("eager", ("stack_lookups",), "int8", 8e-3),
        pytest.param(
            "inductor", ("stack_lookups", "pool_bytes"), "int8", 8e-3, marks=pytest.mark.inductor
        ),
    ],
)
def test_every_pooling(
    captured: Capture, compiler: str, rewrites: tuple[str, ...], tables: str, most: float
) -> None:
    model = Bags().eval()
    path = captured(
        model,
        bags(64, 0),
        jagged=[Jagged("ids", offsets="offsets")],
        buckets=[1, 4, 8],
        table_precision=tables,
        rewrites=rewrites,
        compiler=compiler,
    )
    kinds = [dtype for dtype, _ in stored(path).values()]
    assert kinds.count("F32") == (0 if tables == "fp16" else len(kinds) // 2)
    with Runtime.load(path) as runtime, torch.inference_mode():
        assert len(runtime.manifest.lowered) >= len(list(model.parameters()))
        for rows in (1, 2, 4, 7, 8):
            r = bags(rows, seed=rows)
            want = model(r["ids"], r["offsets"], [r[f"lists_{k}"] for k in range(3)], r["one"])
            got = runtime.run({k: v.numpy() for k, v in r.items()})["output"]
            assert 1e-6 < scaled_gap(got, want) < most
        with pytest.raises(IdRangeError, match=r"\b100\b"):
            runtime.run({k: v.numpy() for k, v in {**r, "one": r["one"] + 100}.items()})


def test_rows_are_lowered_as_they_are_refreshed(shop: Any, tmp_path: Path) -> None:
    """Of a table in a stack: its bytes and its scales are views of the stack's."""
    out = tmp_path / "m.rr"
    example = {k: torch.from_numpy(v) for k, v in shop.request(4).items()}
    capture(shop, example, out=out, buckets=[2, 8], compiler="eager", table_precision="int8")
    assert stored(out)["stack_uint8_8"][0] == "U8"
    other = type(shop)().eval()
    other.load_state_dict(shop.state_dict())
    ids = np.array([0, 29, 7])
    rows = np.random.default_rng(1).standard_normal((3, 8)).astype("f4")
    rows[1] = 0.25  # a row of one value
    request = {**shop.request(3), "ids_1": np.repeat(ids[:, None], 3, axis=1)}
    with Runtime.load(out, lanes=2) as runtime, torch.no_grad():
        runtime.update_rows("aisle.weight", ids, rows)
        other.aisle.weight[ids] = torch.from_numpy(rows)
        for name, want in other.answer(request).items():
            np.testing.assert_allclose(runtime.run(request)[name], want, atol=0.02)
        for bad in (np.nan, np.inf):
            rows[2, 5] = bad
            with pytest.raises(
                RefreshError,
                match=rf"^rows of table 'aisle.weight': row 2 holds {bad}, which int8 rows cannot "
                "hold; nothing was written$",
            ):
                runtime.update_rows("aisle.weight", ids, rows)
        with pytest.raises(RefreshError, match=r"got uint8\[3, 8\]; expected float32\[3, 8\]"):
            runtime.update_rows("aisle.weight", ids, np.zeros((3, 8), "u1"))
        with pytest.raises(RefreshError, match=r"has no weight 'scales:aisle.weight'"):
            runtime.update_rows("scales:aisle.weight", ids, rows)
        for name, want in other.answer(request).items():
            np.testing.assert_allclose(runtime.run(request)[name], want, atol=0.02)


class Layers(nn.Module):
    """A table and a layer, both large enough that their bytes are the artifact's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.EmbeddingBag(5000, 64, mode="sum")
        self.first = nn.Linear(64, 2048)
        self.second = nn.Linear(2048, 128)
        self.last = nn.Linear(128, 1, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(self.table(ids))))))


TABLE, TRUNK = 5000 * 64, 64 * 2048 + 2048 * 128 + 128
BIASES = 2048 + 128


@needs_bf16
@pytest.mark.parametrize(
    ("precision", "tables", "size"),
    [
        ("fp32", "fp32", 4 * (TABLE + TRUNK + BIASES)),
        ("bf16", "fp32", 4 * (TABLE + BIASES) + 2 * TRUNK),
        ("fp32", "fp16", 4 * (TRUNK + BIASES) + 2 * TABLE),
        ("bf16", "int8", 4 * BIASES + 2 * TRUNK + TABLE + 8 * 5000),
    ],
)
def test_bytes(captured: Capture, precision: str, tables: str, size: int) -> None:
    path = captured(
        Layers(),
        {"ids": torch.randint(0, 5000, (4, 3))},
        precision=precision,
        table_precision=tables,
    )
    assert size <= (path / "weights.safetensors").stat().st_size < size + 1024


@needs_bf16
@pytest.mark.parametrize(
    "compiler", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)]
)
def test_copies_of_layers_are_in_bfloat16(captured: Capture, compiler: str) -> None:
    model = Layers().eval()
    path = captured(
        model,
        {"ids": torch.randint(0, 5000, (4, 3))},
        buckets=[1, 4, 8],
        precision="bf16",
        compiler=compiler,
    )
    with Runtime.load(path) as runtime, torch.no_grad():
        names = {name for s in runtime.manifest.buckets[-1].segments for name in s.inputs}
        packs = compiler == "inductor" and torch.cpu._is_avx512_bf16_supported()
        kind = "packed" if packs else "turned"
        assert {f"{kind}:first.weight", f"{kind}:second.weight"} <= names
        for scale in (1.0, -0.5):
            model.second.weight.mul_(scale)
            runtime.update_weights({"second.weight": model.second.weight})
            for rows in (1, 3, 8):
                ids = torch.randint(0, 5000, (rows, 3))
                got = runtime.run({"ids": ids.numpy()})["output"]
                assert 1e-5 < scaled_gap(got, model(ids)) < 0.05


@needs_bf16
@pytest.mark.parametrize(
    "compiler", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)]
)
def test_a_bucket_may_stay_in_float32(
    captured: Capture, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tuner takes float32 for the first bucket here and bfloat16 for the other; one stored
    weight serves both."""
    picks = iter([-1, 0])
    monkeypatch.setattr(
        "recreplay.capture.tune.choose", lambda times, streams: next(picks) % len(times)
    )
    monkeypatch.setattr(  # no other candidates, each of which would be compiled
        "recreplay.capture.pipeline.choices",
        lambda tune, given, *_, **__: [given, replace(given, precision="fp32")],
    )
    monkeypatch.setattr("recreplay.capture.tune.recall", lambda key: None)
    monkeypatch.setattr("recreplay.capture.tune.remember", lambda key, candidates: None)
    model = Layers().eval()
    example = {"ids": torch.randint(0, 5000, (4, 3))}
    path = captured(
        model, example, buckets=[1, 8], precision="bf16", compiler=compiler, tune="quick"
    )
    with Runtime.load(path) as runtime, torch.no_grad():
        manifest = runtime.manifest
        kept = {c.bucket: c.precision for c in manifest.candidates if c.chosen}
        assert kept == {1: "fp32", 8: "bf16"}
        read = [{n for s in b.segments for n in s.inputs} for b in manifest.buckets]
        wide = {n for n in read[0] if n.startswith("wide")}
        assert {n.partition(":")[2] for n in wide} == {
            f"{k}.weight" for k in ("first", "second", "last")
        }
        assert not any(n.startswith("wide") for n in read[1])
        assert manifest.lowered["first.weight"] == "bfloat16"
        for scale in (1.0, -0.5):
            model.second.weight.mul_(scale)
            runtime.update_weights({"second.weight": model.second.weight})
            errors = {}
            for rows in (1, 3):
                ids = torch.randint(0, 5000, (rows, 3))
                got = runtime.run({"ids": ids.numpy()})["output"]
                errors[rows] = scaled_gap(got, model(ids))
            assert 1e-6 < errors[1] < 0.02  # weights are rounded, and nothing else is
            assert 1e-5 < errors[3] < 0.05


def test_inlined_layers_widen_their_weights_and_round_nothing_else() -> None:
    program = specialise(ingest(Layers().eval(), {"ids": torch.randint(0, 5000, (4, 3))}), 1)
    lowering = find_lowering(program, Precision("bf16"))
    assert lowering.factors == {"first.weight", "second.weight", "last.weight"}
    inline_linears(program)
    lower_products(program, lowering.factors, torch.bfloat16)
    low = [n for n in program.graph.nodes if getattr(n.meta["val"], "dtype", 0) is torch.bfloat16]
    assert {str(n.target) for n in low} == {f"weight:{name}" for name in lowering.factors}
    for weight in low:
        (reader,) = weight.users
        assert reader.target is torch.ops.aten.to.dtype
        assert reader.meta["val"].dtype is torch.float32


class Scaled(nn.Module):
    """Scores are scaled by their product, as attention often is, and multiplied as they are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, items: Tensor) -> Tensor:
        query, key = self.query(items), self.key(items).transpose(1, 2)
        none = torch.zeros(1, dtype=torch.float32)
        return torch.bmm(torch.baddbmm(none, query, key, beta=0, alpha=8**0.5), items).sum(1)


@needs_bf16
def test_products_that_are_scaled(captured: Capture) -> None:
    model, items = Scaled().eval(), torch.randn(4, 3, 8)
    with Runtime.load(captured(model, {"items": items}, precision="bf16")) as runtime:
        assert scaled_gap(runtime.run({"items": items})["output"], model(items).detach()) < 0.02


def test_float32_is_as_it_was(shop_path: Path) -> None:
    manifest = open_artifact(shop_path).manifest
    assert (manifest.precision, manifest.table_precision) == ("fp32", "fp32")
    assert (manifest.max_error, manifest.lowered) == (None, {})
    assert {dtype for dtype, _ in stored(shop_path).values()} == {"F32"}
    for parity in manifest.parity:
        assert [o.output for o in parity.outputs] == ["vector", "score"]
        assert max(o.max_abs for o in parity.outputs) == parity.max_abs
        assert {o.atol for o in parity.outputs} == {parity.atol}


# Refusals


def test_an_error_beyond_the_bound_writes_nothing(captured: Capture, tmp_path: Path) -> None:
    with pytest.raises(
        ParityError,
        match=r"^bucket 2, [12] rows: output 'output' differs from the float32 model by [\d.e-]+, "
        r"expected at most [\d.e-]+ \(max_error 1e-05 of its scale [\d.]+\) with precision 'fp32' "
        r"and table precision 'int8'; nothing was written. Raise --max-error if the model may be "
        r"that far off, or use fp32$",
    ):
        captured(
            Layers(),
            {"ids": torch.randint(0, 5000, (4, 3))},
            table_precision="int8",
            max_error=1e-5,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"precision": "fp8"}, "^unknown precision 'fp8'; expected one of fp32, tf32, bf16, fp16$"),
        (
            {"table_precision": "int4"},
            "^unknown table precision 'int4'; expected one of fp32, fp16, int8$",
        ),
        ({"max_error": 0.1}, "^max_error 0.1 bounds what a lower precision costs, and nothing is"),
        ({"table_precision": "int8", "max_error": 0.0}, "more than 0; got 0$"),
        (
            {"precision": "tf32"},
            "^precision 'tf32' cannot be captured for 'cpu': TF32 is a mode of CUDA's matrix "
            "units; on a CPU use fp32 or bf16$",
        ),
        (
            {"precision": "fp16"},
            "^precision 'fp16' cannot be captured for 'cpu': torch multiplies float16 .* on a CPU "
            "use bf16, and float16 for tables alone",
        ),
    ],
)
def test_what_cannot_be_had(captured: Capture, options: dict[str, Any], text: str) -> None:
    with pytest.raises(CaptureError, match=text):
        captured(Layers(), {"ids": torch.randint(0, 5000, (4, 3))}, **options)


def test_a_table_that_bytes_cannot_hold(captured: Capture) -> None:
    model = Layers()
    with torch.no_grad():
        model.table.weight[33, 2] = torch.nan
    with pytest.raises(
        CaptureError,
        match=r"^weight 'table.weight': row 33 holds nan, which int8 rows cannot hold; capture it "
        "with fp32 for what is int8 rows now$",
    ):
        captured(model, {"ids": torch.randint(0, 30, (4, 3))}, table_precision="int8")


def test_the_self_test_notices_another_table(captured: Capture, tmp_path: Path) -> None:
    """The stored answers are the artifact's own, so that a change far below the bound shows."""
    model = Layers()
    example = {"ids": torch.randint(0, 5000, (4, 3))}
    path = captured(model, example, table_precision="int8", max_error=0.5)
    with torch.no_grad():
        model.table.weight += 1e-3 * torch.randn(5000, 64)
    other = captured(model, example, table_precision="int8", max_error=0.5)
    shutil.copy(other / "weights.safetensors", path / "weights.safetensors")
    reseal(path)
    with pytest.raises(ParityError, match=r"self-test of bucket 2 failed: output 'output' differs"):
        Runtime.load(path)


def reseal(path: Path) -> None:
    manifest = Manifest.from_json(json.loads((path / "manifest.json").read_text()))
    for name in ("manifest.json", "manifest.sha256"):
        (path / name).unlink()
    seal(path, replace(manifest, files={}))


def test_a_lowered_artifact_is_not_exported(captured: Capture, tmp_path: Path) -> None:
    path = captured(Layers(), {"ids": torch.randint(0, 5000, (4, 3))}, table_precision="fp16")
    with pytest.raises(
        CaptureError,
        match=r"^Layers was captured with precision 'fp32' and table precision 'fp16', and the "
        "artifact does not hold its float32 weights any more; capture it with fp32 for both",
    ):
        export_onnx(path, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
