"""Models that compare the rows of a request: padding is masked, and a request is one replay."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recreplay.capture import Jagged, capture
from recreplay.capture.onnx_export import export_onnx
from recreplay.capture.onnx_import import load_onnx
from recreplay.runtime import Funnel, Runtime, Serving, Stage
from recreplay.runtime.errors import (
    BorrowError,
    CapacityError,
    CaptureError,
    InputNameError,
    ParityError,
    RecReplayError,
    UnsupportedModelError,
)
from recreplay.runtime.manifest import Manifest

Arrays = dict[str, Any]
Capture = Callable[..., Path]
BUCKETS = (1, 4, 16)
MANY = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Rerank(nn.Module):
    """Attention among the candidates of a request, then a softmax over them."""

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.item, self.kind = nn.Embedding(100, 8), nn.Embedding(9, 8)
        self.dense = nn.Linear(4, 8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.top = nn.Linear(8, 1)
        self.masked = masked

    def forward(self, item: Tensor, mask: Tensor, kind: Tensor, dense: Tensor) -> dict[str, Tensor]:
        x = self.item(item) + self.kind(kind) + self.dense(dense)
        near = self.q(x) @ self.k(x).T
        if self.masked:
            near = near.masked_fill(~mask, -torch.inf)
        x = x + near.softmax(1) @ self.v(x)
        score = self.top(x.relu()).squeeze(1)
        return {"score": score, "share": score.masked_fill(~mask, -torch.inf).softmax(0)}


def example(rows: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "item": torch.randint(0, 100, (rows,), generator=draw),
        "mask": torch.ones(rows, dtype=torch.bool),
        "kind": torch.randint(0, 9, (rows,), generator=draw),
        "dense": torch.randn(rows, 4, generator=draw),
    }


def asked(rows: int, seed: int = 0) -> Arrays:
    """The same as a request has it."""
    return {name: t.numpy() for name, t in example(rows, seed).items() if name != "mask"}


def answer(rows: int, seed: int = 0) -> Arrays:
    with torch.inference_mode():
        return {name: t.numpy() for name, t in Rerank().eval()(**example(rows, seed)).items()}


def same(got: Arrays, want: Arrays) -> None:
    assert set(got) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module", params=["eager", "inductor"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("mask") / "rerank.rr"
    capture(
        Rerank().eval(),
        example(6),
        out=out,
        buckets=BUCKETS,
        row_mask="mask",
        compiler=request.param,
    )
    return out


@pytest.fixture(scope="module")
def runtime(artifact: Path) -> Iterator[Runtime]:
    with Runtime.load(artifact, lanes=2) as loaded:
        yield loaded


@MANY
@given(requests=st.lists(st.integers(1, 16), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_padding_is_masked_however_one_asks(
    runtime: Runtime, requests: list[int], seed: int
) -> None:
    for at, rows in enumerate(requests):
        want, given = answer(rows, seed + at), asked(rows, seed + at)
        same(runtime.run(given), want)
        same(runtime.run({name: torch.from_numpy(x) for name, x in given.items()}), want)
        same(runtime.submit(given).result(), want)
        same(asyncio.run(runtime.arun(given)), want)
        with runtime.borrow(rows) as request:
            assert set(request.inputs) == set(given)
            for name, value in given.items():
                request.inputs[name][:] = value
            same(request.run(), want)


def test_a_request_is_never_cut(artifact: Path, runtime: Runtime) -> None:
    said = (
        r"^the request of 17 rows fits in no bucket; the largest has 16 rows, and it cannot be cut"
    )
    with pytest.raises(CapacityError, match=said):
        runtime.run(asked(17))
    with pytest.raises(CapacityError, match=said):
        runtime.submit(asked(17)).result()
    with pytest.raises(
        BorrowError, match=r"^cannot borrow 17 rows; expected 1 to 16, the largest bucket$"
    ):
        runtime.borrow(17)
    for name, options in (
        ("max_delay_us", Serving(max_delay_us=0)),
        ("chunk_rows", Serving(chunk_rows=4)),
    ):
        with pytest.raises(
            RecReplayError, match=rf"^{name} is \d, but requests can be neither packed nor cut"
        ):
            Runtime.load(artifact, serving=options)


def test_what_is_said_of_it(artifact: Path, runtime: Runtime) -> None:
    manifest = runtime.manifest
    assert [spec.name for spec in manifest.inputs] == ["item", "kind", "dense"]
    whole = manifest.model_inputs
    assert [spec.name for spec in whole] == ["item", "mask", "kind", "dense"]
    assert whole[1].kind == "mask"
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    plain = replace(manifest, row_mask=None)
    assert plain.model_inputs == plain.inputs
    told = r"unknown mask; expected item, kind, dense; mask is the row mask, which the runtime writ"
    with pytest.raises(InputNameError, match=told):
        runtime.run({name: t.numpy() for name, t in example(3).items()})


def test_the_last_stage_of_a_funnel(runtime: Runtime, captured: Capture) -> None:
    class First(nn.Module):
        def forward(self, dense: Tensor) -> Tensor:
            return dense.sum(1)

    first = captured(First(), {"dense": torch.randn(3, 4)}, buckets=[64])
    request = asked(50, 3)
    with (
        Runtime.load(first) as small,
        Funnel([Stage(small, 9), Stage(runtime, 3, "share")]) as both,
    ):
        got = both.run(request)
    left = np.sort(np.argsort(-request["dense"].sum(1), kind="stable")[:9])
    want = runtime.run({name: value[left] for name, value in request.items()})["share"]
    best = np.argsort(-want, kind="stable")[:3]
    np.testing.assert_array_equal(got.rows, left[best])
    np.testing.assert_allclose(got.scores, want[best], rtol=1e-5)


class Towers(nn.Module):
    """One user with a history; tags of each candidate; how a score compares with the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.seen, self.tags, self.item = (nn.EmbeddingBag(30, 8, mode="sum") for _ in range(3))

    def forward(
        self,
        seen: Tensor,
        seen_offsets: Tensor,
        tags: Tensor,
        tag_counts: Tensor,
        item: Tensor,
        real: Tensor,
    ) -> Tensor:
        user = self.seen(seen, seen_offsets[:-1])
        starts = tag_counts.cumsum(0) - tag_counts
        x = self.item(item[:, None]) + self.tags(tags, starts)
        score = (user * x).sum(1)
        total = score.masked_fill(~real, 0.0).sum()
        return score - total / real.sum()


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    out = tmp_path_factory.mktemp("towers") / "m.rr"
    given = {
        "seen": torch.arange(12) % 30,
        "seen_offsets": torch.tensor([0, 3, 6, 9, 12]),
        "tags": torch.arange(8),
        "tag_counts": torch.tensor([2, 2, 2, 2]),
        "item": torch.arange(4),
        "real": torch.ones(4, dtype=torch.bool),
    }
    capture(
        Towers().eval(),
        given,
        out=out,
        buckets=BUCKETS,
        compiler="eager",
        jagged=[
            Jagged("seen", offsets="seen_offsets", capacity=20),
            Jagged("tags", lengths="tag_counts", capacity=3),
        ],
        user_inputs=["seen", "seen_offsets"],
        row_mask="real",
    )
    with Runtime.load(out) as loaded:
        yield loaded


@MANY
@given(rows=st.integers(1, 16), seen=st.integers(0, 20), seed=st.integers(0, 999))
def test_with_jagged_inputs_and_a_user_side(
    towers: Runtime, rows: int, seen: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, 4, rows)
    request = {
        "seen": draw.integers(0, 30, seen),
        "seen_offsets": np.array([0, seen]),
        "tags": draw.integers(0, 30, counts.sum()),
        "tag_counts": counts,
        "item": draw.integers(0, 30, rows),
    }
    tensors = {name: torch.from_numpy(value) for name, value in request.items()}
    tensors["seen"] = tensors["seen"].repeat(rows)
    tensors["seen_offsets"] = torch.arange(rows + 1) * seen
    with torch.inference_mode():
        want = Towers().eval()(**tensors, real=torch.ones(rows, dtype=torch.bool)).numpy()
    np.testing.assert_allclose(towers.run(request)["output"], want, rtol=1e-4, atol=1e-4)


def test_values_beyond_the_largest_bucket(towers: Runtime) -> None:
    request = {
        "seen": np.zeros(1, np.int64),
        "seen_offsets": np.array([0, 1]),
        "tags": np.zeros(50, np.int64),  # 48 are room for a bucket of 16
        "tag_counts": np.array([25, 25]),
        "item": np.array([1, 2]),
    }
    with pytest.raises(
        CapacityError,
        match=r"^the request of 2 rows fits in no bucket; the largest has 16 rows, and no room for "
        r"its values, and it cannot be cut",
    ):
        towers.run(request)
    fits = {**request, "tags": request["tags"][:40], "tag_counts": np.array([20, 20])}
    towers.run(fits)  # in a larger bucket than its rows need


def test_a_model_that_reads_padding_is_refused(captured: Capture) -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=r"^output 'score' of a row depends on rows that are padding: .* 'mask' is false, .* "
        r"as by scores\.masked_fill\(~mask, float\('-inf'\)\) before a softmax$",
    ):
        captured(Rerank(masked=False), example(6), row_mask="mask")
    with pytest.raises(UnsupportedModelError, match=r"have it take a row mask \(row_mask\)"):
        captured(Rerank(), example(6))


def test_a_bucket_with_more_rows_than_the_model_takes(captured: Capture) -> None:
    """The model is asked before a device records what it cannot take."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Embedding(8, 4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x + self.place(torch.arange(mask.shape[0])).sum(1)

    given = {"x": torch.randn(4), "mask": torch.ones(4, dtype=torch.bool)}
    assert captured(Positions(), given, row_mask="mask", buckets=[1, 8]).exists()
    with pytest.raises(
        CaptureError,
        match=r"^the model itself fails on a request of 9 rows made of its example inputs: Index",
    ):
        captured(Positions(), given, row_mask="mask", buckets=[1, 9])


@pytest.mark.parametrize("keep", [3, 4, 5])
def test_a_model_that_picks_padding_for_want_of_rows_is_refused(
    captured: Capture, keep: int
) -> None:
    """Requests with as many rows as it keeps are right, and so are those of a single one, which
    padding repeats."""

    class Best(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            order = torch.argsort(x.masked_fill(~mask, -torch.inf), descending=True, stable=True)
            best = x[order[torch.arange(keep).clamp(max=mask.shape[0] - 1)]]
            return torch.where(mask, x - best.mean(), 0.0)

    given = {"x": torch.randn(6), "mask": torch.ones(6, dtype=torch.bool)}
    with pytest.raises(UnsupportedModelError, match=r"the outputs of 2 rows and those of the same"):
        captured(Best(), given, row_mask="mask", buckets=[1, 16])


def test_padding_that_counts_in_a_larger_bucket(captured: Capture) -> None:
    """Zeros add nothing to a sum of the ten best scores, but take the place of negative ones once
    there are ten: more rows than are padded before a bucket is proved."""

    class Best(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            some = torch.cat([x.masked_fill(~mask, 0.0), torch.full((10,), -99.0)])
            best = some.topk(10).values
            return torch.where(mask, x - best.masked_fill(best < -9.0, 0.0).sum(), 0.0)

    given = {"x": -torch.arange(1.0, 6.0), "mask": torch.ones(5, dtype=torch.bool)}
    with pytest.raises(ParityError, match=r"^bucket 16, 1 rows: .* rows for which 'mask' is false"):
        captured(Best(), given, row_mask="mask", buckets=[16])


WRONG: dict[str, tuple[Arrays, str]] = {
    "absent": ({"row_mask": "valid"}, r"^the model has no input 'valid', which row_mask names"),
    "several": (
        {"row_mask": ["mask"]},
        r"^the model has no input \['mask'\], which row_mask names",
    ),
    "dtype": ({"row_mask": "kind"}, r"^row mask 'kind' is int64\[6\] in the example; expected bo"),
    "shape": ({"row_mask": "dense"}, r"^row mask 'dense' is float32\[6, 4\] in the example"),
    "user": (
        {"row_mask": "mask", "user_inputs": ["mask"]},
        r"^input 'mask' cannot be a row mask and something else as well$",
    ),
}


@pytest.mark.parametrize("how", WRONG)
def test_wrong_declarations(captured: Capture, how: str) -> None:
    told, match = WRONG[how]
    with pytest.raises(CaptureError, match=match):
        captured(Rerank(), example(6), **told)


def test_an_example_is_not_padded(captured: Capture) -> None:
    padded = example(6) | {"mask": torch.tensor([True] * 5 + [False])}
    with pytest.raises(CaptureError, match=r"expected bool \[B\], all true: no row of the example"):
        captured(Rerank(), padded, row_mask="mask")

    class Counted(nn.Module):
        def forward(self, mask: Tensor) -> Tensor:
            return mask / mask.sum()

    with pytest.raises(CaptureError, match=r"^the model has no input besides the row mask 'mask'"):
        captured(Counted(), {"mask": example(6)["mask"]}, row_mask="mask")


def test_something_says_how_many_rows_there_are(captured: Capture) -> None:
    """A user's inputs have one row, and requests no mask; with several users, each row has an
    index."""

    class Shares(nn.Module):
        def forward(self, user: Tensor, mask: Tensor) -> Tensor:
            return user.sum(1) * mask / mask.sum()

    given = {"user": torch.ones(4, 3), "mask": torch.ones(4, dtype=torch.bool)}
    told: Arrays = {"row_mask": "mask", "user_inputs": ["user"]}
    with pytest.raises(
        CaptureError,
        match=r"^the model has no input besides the row mask 'mask' and the user's, so nothing",
    ):
        captured(Shares(), given, **told)
    with Runtime.load(captured(Shares(), given, users=3, **told)) as runtime:
        request = {"user": np.ones((2, 3), np.float32), "user_index": np.array([0, 1, 1])}
        np.testing.assert_allclose(runtime.run(request)["output"], 1)


def test_to_onnx_and_back(artifact: Path, tmp_path: Path) -> None:
    export_onnx(artifact, tmp_path / "m.onnx")
    out = tmp_path / "back.rr"
    capture(
        load_onnx(tmp_path / "m.onnx"),  # whose own example it is
        out=out,
        buckets=BUCKETS,
        row_mask="mask",
        compiler="eager",
    )
    with Runtime.load(out) as runtime:
        for rows in (1, 3, 16):
            same(runtime.run(asked(rows, 8)), answer(rows, 8))
