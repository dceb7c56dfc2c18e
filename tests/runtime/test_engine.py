"""The runtime as a service uses it: any size, any thread, closed and opened again."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import capture
from recreplay.runtime import ModelRepository, Runtime
from recreplay.runtime.errors import (
    EnvironmentMismatchError,
    InputNameError,
    RecReplayError,
    RuntimeClosedError,
)

THREADS = 64
REQUESTS = 100_000


@pytest.fixture(scope="module")
def runtime(shop_path: Path) -> Iterator[Runtime]:
    with Runtime.load(shop_path) as loaded:
        yield loaded


def agree(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [*range(1, 21), 100])
def test_every_size_equals_eager(runtime: Runtime, shop: Any, rows: int) -> None:
    request = shop.request(rows, seed=rows)
    agree(runtime.run(request), shop.answer(request))


def test_results_are_the_callers_own(runtime: Runtime, shop: Any) -> None:
    request = shop.request(8)
    first = runtime.run(request)
    kept = {k: v.copy() for k, v in first.items()}
    runtime.run(shop.request(8, seed=1))
    agree(first, kept)
    for value in first.values():
        value[:] = 0
    agree(runtime.run(request), kept)


def test_large_requests_are_split_into_the_largest_bucket(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path) as runtime:
        runtime.run(shop.request(8))
        assert runtime.stats()["split_requests"] == 0
        runtime.run(shop.request(26))
        stats = runtime.stats()
        assert stats["split_requests"] == 1
        assert stats["replays"] == {2: 1, 8: 4}  # 8; then 8, 8, 8 and 2
        assert stats["rows"] == 34


def test_more_sizes_than_are_kept_prepared(shop_path: Path, shop: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("recreplay.runtime.lane._PREPARED", 3)
    with Runtime.load(shop_path) as runtime:
        for rows in [*range(1, 9), *range(8, 0, -1)]:
            request = shop.request(rows, seed=rows)
            agree(runtime.run(request), shop.answer(request))


# Submit and close


def test_submitted_requests_are_answered_in_order(runtime: Runtime, shop: Any) -> None:
    requests = [shop.request(rows, seed=rows) for rows in (1, 20, 3, 8)]
    futures = [runtime.submit(request) for request in requests]
    for request, future in zip(requests, futures, strict=True):
        agree(future.result(timeout=30), shop.answer(request))


def test_a_wrong_request_fails_in_its_future_alone(runtime: Runtime, shop: Any) -> None:
    good = shop.request(3)
    futures = [runtime.submit(good), runtime.submit({}), runtime.submit(good)]
    wait(futures, timeout=30)
    with pytest.raises(InputNameError, match=r"^inputs do not match the model: missing dense"):
        futures[1].result()
    agree(futures[0].result(), shop.answer(good))
    agree(futures[2].result(), shop.answer(good))


def test_closing_answers_what_was_submitted(shop_path: Path, shop: Any) -> None:
    runtime = Runtime.load(shop_path)
    request = shop.request(20)
    futures = [runtime.submit(request) for _ in range(50)]
    runtime.close()
    for future in futures:
        agree(future.result(timeout=30), shop.answer(request))


def test_a_closed_runtime_says_so(shop_path: Path, shop: Any) -> None:
    runtime = Runtime.load(shop_path)
    runtime.run(shop.request(1))
    runtime.close()
    runtime.close()
    message = r"^this Runtime was closed; load the artifact again$"
    with pytest.raises(RuntimeClosedError, match=message):
        runtime.run(shop.request(1))
    with pytest.raises(RuntimeClosedError, match=message):
        runtime.submit(shop.request(1))
    assert runtime.stats()["requests"] == 1


def test_leaving_the_context_closes(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path) as runtime:
        runtime.run(shop.request(2))
    with pytest.raises(RuntimeClosedError):
        runtime.run(shop.request(2))
    with pytest.raises(ZeroDivisionError), Runtime.load(shop_path) as runtime:
        raise ZeroDivisionError
    with pytest.raises(RuntimeClosedError):
        runtime.run(shop.request(2))


def test_closing_while_others_run_loses_no_answer(shop_path: Path, shop: Any) -> None:
    runtime = Runtime.load(shop_path)
    request = shop.request(3)
    expected = shop.answer(request)
    started, problems = threading.Barrier(9), []

    def serve() -> None:
        started.wait()
        try:
            while True:
                agree(runtime.run(request), expected)
        except RuntimeClosedError:
            pass
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    started.wait()
    while runtime.stats()["requests"] < 200:
        pass
    runtime.close()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert problems == []


# Several artifacts, devices, imports


def test_two_artifacts_serve_side_by_side(shop_path: Path, shop: Any, tmp_path: Path) -> None:
    torch.manual_seed(99)
    other = type(shop)().eval()
    example = {k: torch.from_numpy(v) for k, v in other.request(4).items()}
    capture(
        other, example, out=tmp_path / "o.rr", buckets=[4], strategy="feature", compiler="eager"
    )
    with Runtime.load(shop_path) as one, Runtime.load(tmp_path / "o.rr") as two:
        for rows in (1, 5, 9):
            request = shop.request(rows)
            agree(one.run(request), shop.answer(request))
            agree(two.run(request), other.answer(request))
        assert not np.allclose(one.run(request)["score"], two.run(request)["score"])


def test_one_artifact_loads_twice(shop_path: Path, shop: Any) -> None:
    request = shop.request(5)
    with Runtime.load(shop_path) as one:
        with Runtime.load(str(shop_path)) as two:
            agree(two.run(request), one.run(request))
        agree(one.run(request), shop.answer(request))


def test_another_device_is_refused(shop_path: Path) -> None:
    message = (
        r"shop\.rr was captured for 'cpu' and cannot run on 'cuda:1'; capture it again with "
        r"device='cuda'$"
    )
    with pytest.raises(EnvironmentMismatchError, match=message):
        Runtime.load(shop_path, device="cuda:1")


@pytest.mark.parametrize("device", ["cpu:0", "tpu", "cuda:x"])
def test_an_unknown_device_is_named(shop_path: Path, tmp_path: Path, device: str) -> None:
    message = rf"^unknown device '{device}'; expected 'cpu', 'cuda' or 'cuda:N'$"
    with pytest.raises(RecReplayError, match=message):
        Runtime.load(shop_path, device=device)
    with pytest.raises(RecReplayError, match=message):
        ModelRepository(tmp_path, device=device)  # else each model would be said to fail


def test_importing_the_runtime_does_not_import_torch() -> None:
    code = (
        "import sys, recreplay.runtime\n"
        "from recreplay.runtime import Runtime\n"
        "heavy = ('torch', 'safetensors', 'recreplay.capture', 'recreplay.models')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_imports_nothing_of_capture(shop_path: Path) -> None:
    code = (
        "import sys\n"
        "from recreplay.runtime import Runtime\n"
        "Runtime.load(sys.argv[1]).close()\n"
        "heavy = ('recreplay.capture', 'recreplay.models', 'torch._inductor')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(shop_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Many threads


class Tally(nn.Module):
    """Cheap, and every output row names its inputs: a row of another request would show."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.arange(1000.0)[:, None] * 1000)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        return self.table(ids)[:, 0] + dense[:, 0]


def test_many_threads_and_mixed_sizes_get_their_own_rows(tmp_path: Path) -> None:
    example = {"ids": torch.arange(4), "dense": torch.ones(4, 1)}
    out = tmp_path / "tally.rr"
    capture(Tally().eval(), example, out=out, buckets=[1, 8, 32], compiler="eager")
    sizes = [1, 2, 7, 8, 9, 31, 32, 33, 80]
    tickets, wrong = count(), []

    def serve(number: int, runtime: Runtime) -> None:
        # Two inputs in turn per size, different for each thread, at every place of their row.
        cases = []
        for at, rows in enumerate(sizes):
            for turn in range(2):
                ids = (np.arange(rows) * 7 + number * 13 + at + 500 * turn) % 1000
                dense = (np.arange(rows) + number + 100 * turn).astype(np.float32)[:, None]
                expected = (ids * 1000).astype(np.float32) + dense[:, 0]
                cases.append(({"ids": ids, "dense": dense}, expected))
        at = number
        while next(tickets) < REQUESTS:
            request, expected = cases[at % len(cases)]
            at += 1
            got = runtime.run(request)["output"]
            if got.shape != expected.shape or not (got == expected).all():
                wrong.append((number, at))
                return

    # Some of the requests are wrong, so that failures happen in between.
    def spoil(runtime: Runtime, stop: threading.Event) -> None:
        while not stop.wait(0.01):
            with pytest.raises(RecReplayError):
                runtime.run({"ids": np.array([5, 1000]), "dense": np.zeros((2, 1), "f4")})

    with Runtime.load(out) as runtime:
        stop = threading.Event()
        spoiler = threading.Thread(target=spoil, args=(runtime, stop))
        threads = [threading.Thread(target=serve, args=(i, runtime)) for i in range(THREADS)]
        for thread in [spoiler, *threads]:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        spoiler.join()
        stats = runtime.stats()
    assert wrong == []
    assert stats["requests"] == REQUESTS
    assert stats["failed"] > 0
    assert sum(stats["replays"].values()) > REQUESTS
