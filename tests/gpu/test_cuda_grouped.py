"""Grouped lookups on a device: the kernel itself, the models with the rewrite, and bad ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import check

from recreplay.capture import capture
from recreplay.capture.compilers.toolchain import inductor_problem, triton_problem
from recreplay.models import MODELS
from recreplay.runtime import Runtime
from recreplay.runtime.aten import GROUPED_LOOKUP, resolve
from recreplay.runtime.lookup_slots import (
    SPLITS,
    LookupSlot,
    bags_of_a_program,
    for_threads,
    pack_slots,
)

pytestmark = pytest.mark.skipif(triton_problem() is not None, reason=str(triton_problem()))
REWRITES = ("group_lookups", "stack_lookups", "stack_branches", "inline_linears")
COMPILERS = [
    "eager",
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(
            inductor_problem("cuda") is not None, reason=str(inductor_problem("cuda"))
        ),
    ),
]


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_the_kernel_is_plain_torch(
    dtype: torch.dtype, ids_dtype: torch.dtype, split: int, bad: bool
) -> None:
    """Widths 1 to 257, lengths 1 to 50: the device against the operator on the CPU."""
    draw = torch.Generator().manual_seed(split)
    widths, lengths, batch, rows = (
        (1, 3, 4, 8, 32, 64, 100, 257),
        (50, 1, 7, 20, 1, 33, 2, 5),
        9,
        31,
    )
    slots: list[LookupSlot] = []
    base = ids_base = pairs_base = column = 0
    for width, length in zip(widths, lengths, strict=True):
        slot = LookupSlot(
            *(batch, base, rows, width, width, ids_base, length, length, width == 64),
            *(column, sum(widths)),
            pairs_base=pairs_base,
        )
        slots += for_threads(slot, dtype.itemsize, split)
        base += -(-rows * width // 32) * 32
        pairs_base += rows
        ids_base += batch * length
        column += width
    pairs = None
    if dtype == torch.uint8:
        weights = torch.randint(0, 256, (base,), generator=draw, dtype=dtype)
        pairs = torch.randn(pairs_base, 2, generator=draw) / 100
    else:
        weights = torch.randn(base, generator=draw).to(dtype)
    ids = torch.randint(0, rows, (ids_base,), generator=draw).to(ids_dtype)
    if bad:
        ids[::3] = torch.iinfo(ids_dtype).max
        ids[1::7] = -1
        ids[2::11] = rows
    numbers = (
        batch * sum(widths),
        batch,
        bags_of_a_program(slots, split),
        split,
        pairs is not None,
    )
    operator = resolve(GROUPED_LOOKUP)
    want = operator(weights, ids, None, None, pack_slots(slots), pairs, *numbers)
    there = None if pairs is None else pairs.cuda()
    given = (weights.cuda(), ids.cuda(), None, None, pack_slots(slots).cuda(), there)
    got = operator(*given, *numbers)
    low = dtype in (torch.float16, torch.bfloat16)
    close = {"rtol": 1e-2, "atol": 0.1} if low else {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(got.cpu(), want, **close)
    torch.cuda.synchronize()  # where an access out of bounds would show


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(
    "name", ["dlrm", "streamrec", "microrec_47", "two_tower", "din", "wide_deep", "rm_small"]
)
def test_models_replay_what_they_compute(name: str, compiler: str, tmp_path: Path) -> None:
    model = MODELS[name].factory(rows_scale=0.001)
    capture(
        model,
        out=tmp_path / "m.rr",
        buckets=[1, 8, 32],
        device="cuda",
        strategy="single",
        compiler=compiler,
        rewrites=REWRITES,
    )
    with Runtime.load(tmp_path / "m.rr") as runtime:
        assert "group_lookups" in runtime.manifest.rewrites
        names = [op for b in runtime.manifest.buckets for s in b.segments for op in s.operators]
        assert any("grouped_lookup" in op for op in names)
        for seed, rows in enumerate((1, 2, 7, 8, 9, 32, 50)):
            check(model, runtime, rows, seed)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", ["dlrm", "microrec_47", "rm_small"])
def test_tables_stored_in_a_lower_type(
    name: str, compiler: str, precision: str, tmp_path: Path
) -> None:
    """Capture compares every bucket with the float32 model, here within the usual bound."""
    model = MODELS[name].factory(rows_scale=0.001)
    manifest = capture(
        model,
        out=tmp_path / "m.rr",
        buckets=[1, 32],
        device="cuda",
        strategy="single",
        compiler=compiler,
        rewrites=REWRITES,
        table_precision=precision,
    )
    for bucket in manifest.buckets:
        operators = [op for s in bucket.segments for op in s.operators]
        assert any("grouped_lookup" in op for op in operators)
        assert not any("embedding" in op for op in operators)
    with Runtime.load(tmp_path / "m.rr") as runtime:  # proves itself on stored requests
        table = next(iter(manifest.lowered))
        shape = runtime.weights()[table][1]
        request = model.example_inputs(9, seed=1)
        before = runtime.run(request)["output"]
        runtime.update_weights({table: np.ones(shape, np.float32)})
        assert not np.array_equal(runtime.run(request)["output"], before)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_bad_ids_and_refreshed_tables(compiler: str, tmp_path: Path) -> None:
    """Unchecked ids read nothing, the context lives on, and one table is refreshed alone."""
    model = MODELS["microrec_47"].factory(rows_scale=0.001)
    capture(
        model,
        out=tmp_path / "m.rr",
        buckets=[4],
        device="cuda",
        strategy="single",
        compiler=compiler,
        rewrites=REWRITES,
    )
    request = {k: v.numpy() for k, v in model.example_inputs(3, seed=1).items()}
    bad = {**request, "ids_7": np.array([-1, 10**12, 2**63 - 1])}
    table = "embed.tables.7.weight"
    with Runtime.load(tmp_path / "m.rr", check="off") as runtime:
        before = runtime.run(request)["output"]
        odd = runtime.run(bad)["output"]
        np.testing.assert_array_equal(runtime.run(request)["output"], before)
        runtime.update_weights({table: np.zeros(model.embed.tables[7].weight.shape, np.float32)})
        np.testing.assert_allclose(runtime.run(request)["output"], odd, rtol=1e-5, atol=1e-6)
