"""Many requests of many sizes, with bad ones among them, beside other work on the device."""

import gc
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import capture
from recreplay.models import dlrm
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import IdRangeError, RecReplayError
from recreplay.runtime.loading import LaneLoader
from recreplay.runtime.segments import EagerPackage


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    model = dlrm(tables=8, rows_scale=0.01)
    capture(model, out=tmp_path / "m.rr", buckets=[1, 8, 64], device="cuda", compiler="eager")
    return tmp_path / "m.rr"


def check(runtime: Runtime, sizes: Iterable[int]) -> None:
    """Requests of so many rows are answered as the model of `artifact` does."""
    model = dlrm(tables=8, rows_scale=0.01)
    for rows in sizes:
        request = model.example_inputs(rows, seed=rows)
        with torch.inference_mode():
            want = model(**model.arguments(request)).numpy()
        got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_mixed_sizes_with_alternating_inputs_give_no_wrong_row(artifact: Path) -> None:
    """A replay answers its own request, never the one before."""
    model = dlrm(tables=8, rows_scale=0.01)
    requests = [model.example_inputs(rows, seed=rows) for rows in (1, 2, 7, 8, 9, 63, 64, 65, 200)]
    with torch.inference_mode():
        wanted = [model(**model.arguments(r)).numpy() for r in requests]
    arrays = [{k: v.numpy() for k, v in r.items()} for r in requests]
    with Runtime.load(artifact) as runtime:
        for turn in range(5000):
            at = turn % len(arrays)
            got = runtime.run(arrays[at])["output"]
            np.testing.assert_allclose(got, wanted[at], rtol=1e-4, atol=1e-5)


def test_a_bad_id_is_an_error_and_the_next_request_is_right(artifact: Path) -> None:
    """The id never reaches the device, so the context lives on."""
    model = dlrm(tables=8, rows_scale=0.01)
    request = model.example_inputs(5, seed=1)
    with torch.inference_mode():
        want = model(**model.arguments(request)).numpy()
    good = {k: v.numpy() for k, v in request.items()}
    bad = {**good, "ids_3": good["ids_3"].copy()}
    bad["ids_3"][2, 4] = 10**9
    with Runtime.load(artifact) as runtime:
        with pytest.raises(IdRangeError, match="input 'ids_3', row 2, position 4"):
            runtime.run(bad)
        np.testing.assert_allclose(runtime.run(good)["output"], want, rtol=1e-4, atol=1e-5)


class FromOne(nn.Module):
    """Its ids count from one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids - 1).sum(1)


def test_graphs_are_recorded_on_a_request(tmp_path: Path) -> None:
    """Zeros, which staging memory begins with, would have ended the context in the warm-up."""
    model = FromOne().eval()
    ids = torch.tensor([[1, 20], [7, 3], [1, 1]])
    capture(
        model,
        out=tmp_path / "m.rr",
        example_inputs={"ids": ids},
        device="cuda",
        buckets=[1, 4],
        compiler="eager",
    )
    with Runtime.load(tmp_path / "m.rr") as runtime, torch.inference_mode():
        np.testing.assert_allclose(runtime.run({"ids": ids})["output"], model(ids), rtol=1e-6)


def test_capture_goes_on_while_another_thread_uses_the_device(artifact: Path) -> None:
    """Thread-local capture: allocations and launches elsewhere do not end it."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            torch.randn(512, 512, device="cuda").mm(
                torch.randn(512, 512, device="cuda")
            ).sum().item()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(5):
            Runtime.load(artifact).close()
    finally:
        stop.set()
        worker.join()


def test_two_artifacts_in_one_process_keep_apart(artifact: Path, tmp_path: Path) -> None:
    """Pools, streams and workspaces are each runtime's own."""
    other = dlrm(tables=4, rows_scale=0.01, seed=5)
    capture(other, out=tmp_path / "o.rr", buckets=[1, 8], device="cuda", compiler="eager")
    first = dlrm(tables=8, rows_scale=0.01)
    with Runtime.load(artifact) as a, Runtime.load(tmp_path / "o.rr") as b:
        for turn in range(200):
            for model, runtime in ((first, a), (other, b)):
                request = model.example_inputs(1 + turn % 8, seed=turn)
                with torch.inference_mode():
                    want = model(**model.arguments(request)).numpy()
                got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_staging_memory_outlives_its_runtime(artifact: Path) -> None:
    """torch records events on the streams that used a pinned block when the block is freed."""
    for _ in range(3):
        runtime = Runtime.load(artifact)
        request = runtime.borrow(2)
        kept = request.__enter__().inputs
        request.__exit__(None, None, None)
        runtime.close()
        del runtime, request
        gc.collect()
        del kept
        gc.collect()
        torch.zeros(1 << 20, dtype=torch.uint8, pin_memory=True)  # takes what was freed
    torch.cuda.synchronize()


@contextmanager
def beside_segments(monkeypatch: pytest.MonkeyPatch, also: Callable[[], object]) -> Iterator[None]:
    """Segments do something else, too, when they are launched: warmed up, or captured."""
    usual = EagerPackage.bind

    def bind(self: EagerPackage, inputs: Any, outputs: Any) -> Any:
        launch = usual(self, inputs, outputs)

        def both() -> None:
            launch()
            also()

        return both

    with monkeypatch.context() as patch:
        patch.setattr(EagerPackage, "bind", bind)
        yield


def test_what_breaks_a_capture_is_told(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator that may not be captured, and not that the capture has ended with an error."""
    stale = torch.zeros(1, device="cuda")
    with (
        beside_segments(monkeypatch, lambda: stale.item()),
        pytest.raises(RecReplayError, match=r"recording a CUDA graph was ended .* 5 times") as told,
    ):
        Runtime.load(artifact)
    assert "item" in "".join(traceback.format_exception(told.value))
    Runtime.load(artifact).close()


def reserved() -> int:
    """Bytes of the device that torch cannot give back."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def test_a_capture_that_another_thread_ended_is_made_again(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.cuda.synchronize` elsewhere; and torch's allocator has forgotten the broken one."""
    ended = 0
    Runtime.load(artifact).close()  # what cuBLAS and others keep is there
    held = reserved()

    def synchronize() -> None:
        with suppress(RuntimeError):  # which CUDA may refuse
            torch.cuda.synchronize()

    def elsewhere() -> None:
        nonlocal ended
        if torch.cuda.is_current_stream_capturing() and ended < 3:
            ended += 1
            torch.empty(1 << 20, device="cuda")  # of the pool that the broken graph leaves
            thread = threading.Thread(target=synchronize)
            thread.start()
            thread.join()

    with beside_segments(monkeypatch, elsewhere):
        runtime = Runtime.load(artifact)
    assert ended == 3
    with runtime:
        check(runtime, (1, 8, 9, 64))
    del runtime
    assert reserved() <= held
    stream = torch.cuda.Stream()
    before = torch.cuda.memory_stats()["active_bytes.all.current"]
    block = torch.ones(1 << 20, device="cuda")
    block.record_stream(stream)
    del block
    torch.cuda.synchronize()
    torch.ones(1, device="cuda")  # looks for what may be freed
    assert torch.cuda.memory_stats()["active_bytes.all.current"] <= before


def test_runtimes_load_and_close_beside_each_other(artifact: Path) -> None:
    """No wait of one for its own work ends a capture of another; a refresh does not either."""
    failed: list[BaseException] = []
    model = dlrm(tables=8, rows_scale=0.01)
    request = {k: v.numpy() for k, v in model.example_inputs(5, seed=1).items()}
    name = "embed.tables.0.weight"
    table = model.state_dict()[name]

    def work() -> None:
        try:
            for _ in range(4):
                with Runtime.load(artifact) as runtime:
                    runtime.run(request)
                    runtime.update_rows(name, np.array([0]), table[:1].numpy())
                    runtime.run(request)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_lane_keeps_what_its_graphs_read(artifact: Path) -> None:
    """Weights are a lane's too: whoever loaded them may go."""
    found = open_artifact(artifact)
    lane = LaneLoader(found, "cuda", "error").lane()
    gc.collect()
    other = LaneLoader(found, "cuda", "error")  # takes what would be free
    for weight in other.weights.values():
        weight.fill_(float("nan"))
    with Runtime(found, lane) as runtime:
        check(runtime, (1, 8, 9))
