"""Inputs that lie on the GPU: taken from there, by torch and by DLPack."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recreplay.capture import capture
from recreplay.models import dlrm
from recreplay.runtime import Runtime
from recreplay.runtime.errors import IdRangeError

MODEL = {"tables": 8, "rows_scale": 0.01}


class Capsule:
    """An array of another library: DLPack alone."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __dlpack__(self, **options: object) -> object:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    out: Path = tmp_path_factory.mktemp("feeding") / "m.rr"
    capture(dlrm(**MODEL), out=out, buckets=[1, 8, 64], device="cuda", compiler="eager")
    with Runtime.load(out) as loaded:
        yield loaded


@pytest.mark.parametrize("rows", [1, 3, 8, 50, 64, 100])
@pytest.mark.parametrize("kind", ["tensors", "dlpack", "half"])
def test_requests_from_both_sides_in_turn(runtime: Runtime, rows: int, kind: str) -> None:
    """The graph's upload is left out and comes back."""
    model = dlrm(**MODEL)
    for seed in range(10):
        request = model.example_inputs(rows, seed=seed)
        with torch.inference_mode():
            want = model(**model.arguments(request)).numpy()
        given = {
            name: tensor.numpy()
            if kind == "half" and at % 2
            else Capsule(tensor.cuda())
            if kind == "dlpack"
            else tensor.cuda()
            for at, (name, tensor) in enumerate(request.items())
        }
        np.testing.assert_allclose(runtime.run(given)["output"], want, rtol=1e-4, atol=1e-5)
        arrays = {name: tensor.numpy() for name, tensor in request.items()}
        np.testing.assert_allclose(runtime.run(arrays)["output"], want, rtol=1e-4, atol=1e-5)


ASK: dict[str, Callable[[Runtime, Any], Any]] = {
    "run": lambda runtime, given: runtime.run(given),
    "submit": lambda runtime, given: runtime.submit(given).result(60),
    "arun": lambda runtime, given: asyncio.run(runtime.arun(given)),
}


@pytest.mark.parametrize("way", ASK)
@pytest.mark.parametrize("kind", [lambda tensor: tensor, Capsule], ids=["tensors", "dlpack"])
def test_what_the_caller_queued_before_is_waited_for(
    runtime: Runtime, kind: Callable[[torch.Tensor], Any], way: str
) -> None:
    """Inputs that a long kernel on the caller's stream still writes, whoever reads them."""
    model = dlrm(**MODEL)
    request = model.example_inputs(64, seed=3)
    with torch.inference_mode():
        want = model(**model.arguments(request)).numpy()
    stream = torch.cuda.Stream()
    there = {name: tensor.cuda() for name, tensor in request.items()}
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            given = {name: kind(tensor.clone()) for name, tensor in there.items()}
            got = ASK[way](runtime, given)["output"]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_bad_id_on_the_device_is_an_error_and_the_next_request_is_right(
    runtime: Runtime,
) -> None:
    model = dlrm(**MODEL)
    request = model.example_inputs(5, seed=1)
    with torch.inference_mode():
        want = model(**model.arguments(request)).numpy()
    good = {name: tensor.cuda() for name, tensor in request.items()}
    bad = {**good, "ids_3": good["ids_3"].clone()}
    bad["ids_3"][2, 4] = 10**9
    with pytest.raises(IdRangeError, match="input 'ids_3', row 2, position 4"):
        runtime.run(bad)
    np.testing.assert_allclose(runtime.run(good)["output"], want, rtol=1e-4, atol=1e-5)


class Recent(nn.Module):
    """Items of three ids, of which the last one counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(rows, 8) for rows in (9, 20, 5))

    def forward(self, events: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.tables, events.unbind(2), strict=True)
        found = torch.cat([table(ids) for table, ids in pairs], 2)
        return found.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, -1, 24)).squeeze(1)


def test_lengths_and_items_on_the_device_are_checked(tmp_path: Path) -> None:
    model, lengths = Recent().eval(), torch.tensor([4, 1, 3])
    events = torch.stack([torch.randint(0, rows, (3, 4)) for rows in (9, 20, 5)], 2)
    given = {"events": events, "lengths": lengths}
    capture(model, given, out=tmp_path / "m.rr", buckets=[4], device="cuda", compiler="eager")
    with torch.inference_mode():
        want = model(**given).numpy()
    good = {name: tensor.cuda() for name, tensor in given.items()}
    wrong = events.clone()
    wrong[1, 2, 2] = 5
    with Runtime.load(tmp_path / "m.rr") as runtime:
        for bad, message in (
            ({"lengths": torch.tensor([4, 0, 3])}, "'lengths', row 1: id 0 is .* are 1 to 4"),
            ({"lengths": torch.tensor([4, 1, 5])}, "'lengths', row 2: id 5 is .* are 1 to 4"),
            ({"events": wrong}, "'events' column 2 of dimension 2, row 1, position 2: id 5"),
        ):
            on_device = {name: tensor.cuda() for name, tensor in bad.items()}
            with pytest.raises(IdRangeError, match=message):
                runtime.run({**good, **on_device})
            got = runtime.run(good)["output"]
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
