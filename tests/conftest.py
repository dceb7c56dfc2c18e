"""What the tests of both halves share: one captured model with every kind of input."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import capture
from recreplay.capture.compilers import compile_workers
from recreplay.capture.rewrites import narrow_ids

Capture = Callable[..., Path]


class Shop(nn.Module):
    """Two staged lists of ids, an int32 id, a float matrix with one id column, and dense values."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = nn.Embedding(50, 8)
        self.aisle = nn.Embedding(30, 8)
        self.tag = nn.Embedding(9, 4)
        self.brand = nn.Embedding(6, 3)
        self.top = nn.Linear(4 + 8 + 8 + 4 + 3 + 2, 5)

    def forward(
        self, dense: Tensor, ids: list[Tensor], tag: Tensor, mixed: Tensor
    ) -> dict[str, Tensor]:
        parts = [
            dense,
            self.shelf(ids[0]).sum(1),
            self.aisle(ids[1]).sum(1),
            self.tag(tag),
            self.brand(mixed[:, 1].long()),
            mixed[:, 0:1],
            mixed[:, 2:3],
        ]
        hidden = self.top(torch.cat(parts, dim=1))
        return {"vector": hidden, "score": hidden.sigmoid().sum(1)}

    def request(self, rows: int, seed: int = 0) -> dict[str, Any]:
        """A valid request as numpy arrays."""
        draw = np.random.default_rng(seed)
        mixed = draw.standard_normal((rows, 3)).astype(np.float32)
        mixed[:, 1] = draw.integers(0, 6, rows)
        return {
            "dense": draw.standard_normal((rows, 4)).astype(np.float32),
            "ids_0": draw.integers(0, 50, (rows, 3)),
            "ids_1": draw.integers(0, 30, (rows, 3)),
            "tag": draw.integers(0, 9, rows).astype(np.int32),
            "mixed": mixed,
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the eager model says to a request."""
        t = {k: torch.from_numpy(np.array(v)) for k, v in request.items()}
        with torch.inference_mode():
            out = self(t["dense"], [t["ids_0"], t["ids_1"]], t["tag"], t["mixed"])
        return {k: v.numpy() for k, v in out.items()}


def pytest_configure(config: pytest.Config) -> None:
    """Packages that one test compiled are found by those after it, of this run and no other."""
    if not hasattr(config, "workerinput"):  # workers find the variable set
        folder = tempfile.mkdtemp(prefix="recreplay-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["XDG_CACHE_HOME"] = folder
    # pytest listens to loggers that do not propagate, and torch writes long records for listeners.
    logging.getLogger("torch.__trace").propagate = True
    os.fsync = _written  # what a cut of the power leaves is not tested


def _written(descriptor: int) -> None:
    """In place of waiting for the disk, a dozen times in a capture."""


def pytest_collection_finish() -> None:
    """What all tests have imported is not looked through by every collection of garbage: a quarter
    of the time of those that capture, of which rarer collections save another tenth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else libraries tell of all that is left when the process ends


@contextmanager
def without_the_name_of_the_test() -> Iterator[None]:
    """Processes that compile are kept while the environment stays, which pytest writes it into."""
    name = os.environ.pop("PYTEST_CURRENT_TEST", None)
    try:
        yield
    finally:
        if name is not None:
            os.environ["PYTEST_CURRENT_TEST"] = name


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Iterator[None]:
    with without_the_name_of_the_test():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Iterator[None]:
    with without_the_name_of_the_test():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Eager and replay on one core, so that the suite does not depend on how many there are."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_compiling_process() -> Iterator[None]:
    """Where tests run side by side, each compiles on its own core: two that take turns start twice
    as many processes for the same code."""
    with pytest.MonkeyPatch.context() as patch:
        if "PYTEST_XDIST_WORKER" in os.environ:
            patch.setenv("MAX_JOBS", "1")
        patch.setattr(compile_workers, "PATIENCE", 600.0)  # from one file that compiles to the next
        yield


@pytest.fixture(scope="session")
def shop() -> Shop:
    torch.manual_seed(7)
    return Shop().eval()


@pytest.fixture(scope="session")
def shop_path(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Shop` captured by the eager compiler in buckets 2 and 8. Not to be written to."""
    out = tmp_path_factory.mktemp("shop") / "shop.rr"
    example = {k: torch.from_numpy(v) for k, v in shop.request(4).items()}
    capture(shop, example, out=out, buckets=[2, 8], compiler="eager")
    return out


@pytest.fixture(scope="session")
def narrow_path(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with ids staged as int32, as on CUDA. Not to be written to."""
    out = tmp_path_factory.mktemp("narrow") / "shop.rr"
    example = {k: torch.from_numpy(v) for k, v in shop.request(4).items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(narrow_ids._LEAST, "cpu", 1)
        manifest = capture(shop, example, out=out, buckets=[2, 8], compiler="eager")
    assert {s.dtype for b in manifest.buckets for s in b.inputs} == {"float32", "int32"}
    return out


@pytest.fixture(scope="session")
def second(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Path]:
    """Another model of the same class, and its artifact. Not to be written to."""
    torch.manual_seed(8)
    other = Shop().eval()
    out = tmp_path_factory.mktemp("second") / "s.rr"
    example = {k: torch.from_numpy(v) for k, v in shop.request(4).items()}
    capture(other, example, out=out, buckets=[2, 8], compiler="eager")
    return other, out


@pytest.fixture
def captured(tmp_path: Path) -> Capture:
    """Capture a model by the eager compiler in buckets 2 and 4, unless told otherwise."""
    count = iter(range(1000))

    def make(model: nn.Module, example: Any = None, **options: Any) -> Path:
        out = tmp_path / f"model{next(count)}.rr"
        options = {"buckets": [2, 4], "compiler": "eager", **options}
        capture(model.eval(), example, out=out, **options)
        return out

    return make
