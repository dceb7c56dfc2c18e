"""What services do with a runtime on a GPU: lanes, refreshes, waiting asleep, several devices."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recreplay.capture import capture
from recreplay.models import dlrm
from recreplay.runtime import Runtime, Serving
from recreplay.runtime.artifact import LAUNCHER
from recreplay.runtime.errors import RefreshError

MODEL = {"tables": 8, "rows_scale": 0.01}
ROWS = (1, 2, 7, 8, 9, 40)


def answer(model: torch.nn.Module, rows: int, seed: int) -> tuple[dict[str, Any], Any]:
    """A request as arrays, and what the eager model says on the CPU."""
    request = model.example_inputs(rows, seed=seed)
    with torch.inference_mode():
        want = model(**model.arguments(request)).numpy()
    return {name: tensor.numpy() for name, tensor in request.items()}, want


def check(runtime: Runtime, model: torch.nn.Module, seed: int = 0) -> None:
    for rows in ROWS:
        request, want = answer(model, rows, seed + rows)
        np.testing.assert_allclose(runtime.run(request)["output"], want, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serving") / "m.rr"
    capture(dlrm(**MODEL), out=out, buckets=[1, 8], device="cuda", compiler="eager")
    return out


@pytest.mark.parametrize("called_by", [LAUNCHER, "cuda-bindings"])
@pytest.mark.parametrize("wait", ["spin", "block"])
def test_lanes_answer_side_by_side(
    artifact: Path, wait: Any, called_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three graphs of their own over the same weights, each request its own rows; by the library
    of the artifact, and as where there is none."""
    monkeypatch.setattr("recreplay.runtime.loading.LAUNCHER", called_by)
    model = dlrm(**MODEL)
    asked = [answer(model, rows, seed) for seed in range(12) for rows in ROWS]
    with (
        Runtime.load(artifact, serving=Serving(lanes=3, wait=wait)) as runtime,
        ThreadPoolExecutor(6) as threads,
    ):
        for _ in range(3):
            answers = threads.map(runtime.run, [request for request, _ in asked])
            for (_, want), got in zip(asked, answers, strict=True):
                np.testing.assert_allclose(got["output"], want, rtol=1e-4, atol=1e-5)
        assert runtime.lanes_alive() == 3


def test_requests_are_packed_and_cut(artifact: Path) -> None:
    model = dlrm(**MODEL)
    serving = Serving(lanes=2, max_delay_us=2000, chunk_rows=8)
    asked = [answer(model, rows, seed) for seed in range(8) for rows in ROWS]
    with Runtime.load(artifact, serving=serving) as runtime:
        futures = [runtime.submit(request) for request, _ in asked]
        for future, (_, want) in zip(futures, asked, strict=True):
            np.testing.assert_allclose(future.result()["output"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inline_us", [0, 10_000_000])
@pytest.mark.parametrize("delay", [None, 200])
def test_coroutines_are_answered(artifact: Path, inline_us: int, delay: int | None) -> None:
    """On the threads of two loops, which recorded none of the graphs, or by those of lanes."""
    model = dlrm(**MODEL)
    asked = [answer(model, rows, seed) for seed in range(8) for rows in ROWS]
    serving = Serving(lanes=2, max_delay_us=delay, inline_us=inline_us)

    async def ask(runtime: Runtime) -> list[Any]:
        return await asyncio.gather(*(runtime.arun(request) for request, _ in asked))

    with Runtime.load(artifact, serving=serving) as runtime, ThreadPoolExecutor(2) as threads:
        for answers in threads.map(asyncio.run, [ask(runtime) for _ in range(2)]):
            for got, (_, want) in zip(answers, asked, strict=True):
                np.testing.assert_allclose(got["output"], want, rtol=1e-4, atol=1e-5)
        assert (runtime.stats()["queue"]["inline"] > 0) == (inline_us > 0)


def test_a_refresh_is_seen_by_the_next_replay_and_by_none_before(artifact: Path) -> None:
    """Whole weights and rows, in place, while other threads replay: each answer is of one state."""
    models = [dlrm(**MODEL, seed=seed) for seed in (0, 1)]
    states = [{k: v.detach().numpy() for k, v in m.named_parameters()} for m in models]
    asked = [[answer(m, rows, rows) for m in models] for rows in ROWS]
    stop, wrong = threading.Event(), []
    with Runtime.load(artifact, lanes=2) as runtime:
        known = runtime.weights()

        def read() -> None:
            turn = 0
            while not stop.is_set():
                (request, first), (_, second) = asked[turn % len(asked)]
                got = runtime.run(request)["output"]
                if not any(np.allclose(got, w, rtol=1e-4, atol=1e-5) for w in (first, second)):
                    wrong.append(turn)
                turn += 1

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for turn in range(20):
                state = states[(turn + 1) % 2]
                runtime.update_weights({k: v for k, v in state.items() if k in known})
                (request, _), _ = asked[0]
                want = asked[0][(turn + 1) % 2][1]
                got = runtime.run(request)["output"]
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        finally:
            stop.set()
            reader.join()
        assert wrong == []
        table = next(name for name in known if "tables.3" in name)
        runtime.update_weights({k: v for k, v in states[0].items() if k in known})
        with torch.no_grad():
            models[0].get_parameter(table)[[1, 4]] = 0.5
        runtime.update_rows(table, np.array([1, 4]), np.full((2, known[table][1][1]), 0.5, "f4"))
        check(runtime, models[0])


class Adapted(torch.nn.Module):
    """A layer with a sum of low rank in its weight and a normalisation behind it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.norm = torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5)
        self.down = torch.nn.Parameter(torch.randn(2, 6))
        self.up = torch.nn.Parameter(torch.randn(5, 2))
        self.norm.running_var.uniform_(0.2, 2)
        self.places = torch.nn.Embedding(4, 6)
        self.register_buffer("place", torch.tensor([seed]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.layer.weight + self.up @ self.down
        x = x + self.places(self.place)
        found: torch.Tensor = self.norm(torch.nn.functional.linear(x, weight, self.layer.bias))
        return found


def test_what_is_made_of_weights_follows_them(tmp_path: Path) -> None:
    models = [Adapted(seed).eval() for seed in (0, 1)]
    x = torch.randn(9, 6)
    options = {"device": "cuda", "compiler": "eager", "buckets": [1, 8]}
    capture(models[0], {"x": x}, out=tmp_path / "m.rr", **options)
    with Runtime.load(tmp_path / "m.rr") as runtime, torch.no_grad():
        for model in (*models, models[0]):
            runtime.update_weights(model.state_dict())
            for rows in (1, 3, 9):
                got = runtime.run({"x": x[:rows].numpy()})["output"]
                np.testing.assert_allclose(got, model(x[:rows]), rtol=1e-4, atol=1e-5)
        with pytest.raises(RefreshError, match=r"index out of range.*; nothing was written"):
            runtime.update_weights({"place": np.array([4])})
        got = runtime.run({"x": x.numpy()})["output"]
        np.testing.assert_allclose(got, models[0](x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "tf32"},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"table_precision": "fp16"},
        {"table_precision": "int8"},
        {"precision": "bf16", "table_precision": "int8"},
    ],
    ids=lambda o: "-".join(o.values()),
)
def test_lower_precision_keeps_its_bound(options: dict[str, Any], tmp_path: Path) -> None:
    """Capture compares every bucket with the float32 model, within the bound of the precision."""
    manifest = capture(
        dlrm(**MODEL),
        out=tmp_path / "m.rr",
        buckets=[1, 8],
        device="cuda",
        compiler="eager",
        **options,
    )
    assert manifest.max_error is not None
    with Runtime.load(tmp_path / "m.rr") as runtime:
        request, want = answer(dlrm(**MODEL), 5, 1)
        got = runtime.run(request)["output"]
        assert np.abs(got - want).max() <= manifest.max_error * np.abs(want).max()


def test_the_tuner_measures_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = dlrm(**MODEL)
    out = tmp_path / "m.rr"
    manifest = capture(
        model, out=out, buckets=[1, 8], device="cuda", compiler="eager", streams=4, tune="full"
    )
    for bucket in (1, 8):
        measured = [c for c in manifest.candidates if c.bucket == bucket and c.us is not None]
        assert len({(c.strategy, c.streams, c.rewrites) for c in measured}) > 4
        assert sum(c.chosen for c in measured) == 1
    with Runtime.load(out) as runtime:
        check(runtime, model)


def test_a_bucket_may_stay_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are copies in float32 of what is stored in bfloat16, on the device as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    picks = iter([-1, 0])  # float32 is a candidate after all others
    monkeypatch.setattr(
        "recreplay.capture.tune.choose", lambda times, streams: next(picks) % len(times)
    )
    monkeypatch.setattr(
        "recreplay.capture.pipeline.choices",
        lambda tune, given, *_, **__: [given, replace(given, precision="fp32")],
    )
    model, out = dlrm(**MODEL), tmp_path / "m.rr"
    options: dict[str, Any] = {"device": "cuda", "compiler": "eager", "precision": "bf16"}
    manifest = capture(model, out=out, buckets=[1, 8], tune="quick", **options)
    wide = [{n for s in b.segments for n in s.inputs if "wide" in n} for b in manifest.buckets]
    assert [bool(names) for names in wide] == [True, False]
    with Runtime.load(out) as runtime:
        for rows in (1, 5):
            request, want = answer(model, rows, rows)
            got = runtime.run(request)["output"]
            assert np.abs(got - want).max() <= manifest.max_error * np.abs(want).max()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_another_device_is_used_and_the_callers_stays(artifact: Path) -> None:
    model = dlrm(**MODEL)
    torch.cuda.set_device(0)
    with Runtime.load(artifact, device="cuda:1", lanes=2) as runtime:
        assert torch.cuda.current_device() == 0
        check(runtime, model)
        with ThreadPoolExecutor(2) as threads:
            for _ in threads.map(lambda seed: check(runtime, model, seed), range(4)):
                pass
        assert torch.cuda.current_device() == 0
        there = {k: torch.from_numpy(v).to("cuda:1") for k, v in answer(model, 8, 3)[0].items()}
        want = answer(model, 8, 3)[1]
        np.testing.assert_allclose(runtime.run(there)["output"], want, rtol=1e-4, atol=1e-5)
    assert torch.cuda.current_device() == 0
