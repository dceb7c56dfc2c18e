"""Requests whose inputs lie on the device, which here is the CPU with two memories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recreplay.runtime import Runtime
from recreplay.runtime.devices.base import Recording
from recreplay.runtime.devices.cpu import CpuDevice, CpuGraph, CpuRecording
from recreplay.runtime.errors import (
    EmptyBatchError,
    IdRangeError,
    InputDtypeError,
    InputShapeError,
)
from recreplay.runtime.serving import Serving


class ApartStaging:
    """The host's bytes and the device's are not the same, and copies between them are counted."""

    def __init__(self, nbytes: int, uploads: list[int]) -> None:
        self.device = torch.zeros(max(nbytes, 1), dtype=torch.uint8)
        self.host = np.zeros(max(nbytes, 1), dtype=np.uint8)
        self.uploads = uploads

    def part(self, nbytes: int) -> ApartStaging:
        part = ApartStaging(1, self.uploads)
        part.device, part.host = self.device[:nbytes], self.host[:nbytes]
        return part

    def upload(self) -> None:
        self.uploads.append(1)
        self.device.copy_(torch.from_numpy(self.host))

    def download(self) -> None:
        torch.from_numpy(self.host).copy_(self.device)


class ApartGraph(CpuGraph):
    """Its first call is the upload."""

    def replay_fed(self) -> None:
        for call in self._calls[1:]:
            call()


class OnDevice:
    """An array of another library that lies on the device."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)


class ApartDevice(CpuDevice):
    uploads: list[int]

    def staging(self, nbytes: int) -> Any:
        return ApartStaging(nbytes, self.uploads)

    def own_tensor(self, value: object) -> torch.Tensor | None:
        if isinstance(value, OnDevice):
            return value.tensor
        return value.detach() if isinstance(value, torch.Tensor) else None

    def record(self, streams: int, issue: Callable[[Recording], None]) -> CpuGraph:
        recording = CpuRecording()
        issue(recording)
        return ApartGraph(recording.calls)


@pytest.fixture(scope="module", params=["int64", "int32"])
def shop_path(request: pytest.FixtureRequest, shop_path: Path, narrow_path: Path) -> Path:
    """Ids are staged as requests have them, or narrower."""
    return narrow_path if request.param == "int32" else shop_path


@pytest.fixture(autouse=True)
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every upload, by the graph or before it."""
    counted: list[int] = []
    monkeypatch.setattr(ApartDevice, "uploads", counted, raising=False)
    monkeypatch.setattr("recreplay.runtime.devices.open_device", lambda *_: ApartDevice())
    # Tensors are on the device here, where no C of ours can read them.
    monkeypatch.setattr("recreplay.runtime.native_fill.tensor_reader", lambda: None)
    return counted


@pytest.fixture
def runtime(shop_path: Path, uploads: list[int]) -> Iterator[Runtime]:
    with Runtime.load(shop_path) as loaded:
        uploads.clear()
        yield loaded


def tensors(request: dict[str, Any], names: list[str] | None = None) -> dict[str, Any]:
    """The request with these inputs, by default all, on the device."""
    chosen = request if names is None else names
    return {k: torch.from_numpy(v) if k in chosen else v for k, v in request.items()}


def agree(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 20])
@pytest.mark.parametrize("names", [None, ["ids_0"], ["ids_1", "mixed"], ["dense"]])
def test_inputs_on_the_device_stay_there(
    runtime: Runtime, shop: Any, uploads: list[int], rows: int, names: list[str] | None
) -> None:
    """Padded, split and mixed with inputs of the host, before and after requests from there."""
    for seed in (1, 2):
        request, other = shop.request(rows, seed=seed), shop.request(rows, seed=seed + 10)
        uploads.clear()
        agree(runtime.run(tensors(request, names)), shop.answer(request))
        replays = -(-rows // 8)
        assert len(uploads) == (0 if names is None else replays)
        agree(runtime.run(other), shop.answer(other))


def test_arrays_of_other_libraries(runtime: Runtime, shop: Any, uploads: list[int]) -> None:
    request = shop.request(3)
    there = {k: OnDevice(torch.from_numpy(v)) for k, v in request.items()}
    agree(runtime.run(there), shop.answer(request))
    assert not uploads


def test_views_of_tensors(runtime: Runtime, shop: Any) -> None:
    """Columns of a larger matrix, and what takes part in a gradient."""
    request = shop.request(5)
    wide = torch.from_numpy(np.concatenate([request["ids_0"], request["ids_1"]], axis=1))
    given = tensors(request)
    given["ids_0"], given["ids_1"] = wide[:, :3], wide[:, 3:]
    given["dense"] = given["dense"].requires_grad_()
    agree(runtime.run(given), shop.answer(request))


BAD = [
    ("ids_1", (2, 1), 30, "input 'ids_1', row 2, position 1: id 30 is out of range; table 'aisle"),
    ("ids_0", (0, 0), -1, "input 'ids_0', row 0, position 0: id -1 is out of range; table 'shelf"),
    ("tag", (4,), 9, "input 'tag', row 4: id 9 is out of range; table 'tag"),
    ("mixed", (3, 1), 6.0, "input 'mixed' column 1, row 3: id 6.0 is out of range; table 'brand"),
    ("mixed", (3, 1), np.nan, "input 'mixed' column 1, row 3: id nan is out of range; table 'b"),
]


@pytest.mark.parametrize(("name", "place", "value", "message"), BAD)
@pytest.mark.parametrize("names", [None, ["tag"], ["ids_0", "ids_1", "mixed"]])
def test_a_bad_id_is_refused_and_the_next_request_is_right(
    runtime: Runtime,
    shop: Any,
    names: list[str] | None,
    name: str,
    place: tuple[int, ...],
    value: Any,
    message: str,
) -> None:
    request = shop.request(5)
    bad = {k: v.copy() for k, v in request.items()}
    bad[name][place] = value
    with pytest.raises(IdRangeError, match=f"^{message}"):
        runtime.run(tensors(bad, names))
    agree(runtime.run(tensors(request, names)), shop.answer(request))


def test_the_row_of_a_bad_id_is_that_of_the_whole_request(runtime: Runtime, shop: Any) -> None:
    request = shop.request(19)
    request["tag"][17] = -3
    with pytest.raises(IdRangeError, match=r"^input 'tag', row 17: id -3 is out of range"):
        runtime.run(tensors(request))


@pytest.mark.parametrize("on_host", [[], ["ids_1"]])
def test_ids_of_64_bits_do_not_become_others(
    runtime: Runtime, shop: Any, on_host: list[str]
) -> None:
    request = shop.request(5)
    request["ids_1"][3, 1] = 2**32 + 5
    there = [name for name in request if name not in on_host]
    with pytest.raises(IdRangeError, match=r"^input 'ids_1', row 3, position 1: id 4294967301 is "):
        runtime.run(tensors(request, there))


def test_bad_ids_are_clamped_and_counted(shop_path: Path, shop: Any) -> None:
    request = shop.request(5)
    request["ids_0"][0] = [-5, 3, 2**40]
    clamped = {**request, "ids_0": np.clip(request["ids_0"], 0, 49)}
    with Runtime.load(shop_path, check="clamp") as runtime:
        agree(runtime.run(tensors(request)), shop.answer(clamped))
        assert runtime.stats()["clamped_ids"] == 2


def test_ids_are_trusted_where_the_caller_says_so(
    shop_path: Path, shop: Any, uploads: list[int]
) -> None:
    request = shop.request(5)
    with Runtime.load(shop_path, check="off") as runtime:
        uploads.clear()
        agree(runtime.run(tensors(request)), shop.answer(request))
        assert not uploads


def test_tensors_of_other_dtypes_go_by_the_host(
    runtime: Runtime, shop: Any, uploads: list[int]
) -> None:
    """As they would from there: what widens is taken, and what loses is refused."""
    request = shop.request(3)
    given = tensors(request)
    given["ids_0"] = given["ids_0"].to(torch.int32)
    agree(runtime.run(given), shop.answer(request))
    assert len(uploads) == 1
    given["dense"] = given["dense"].double()
    with pytest.raises(InputDtypeError, match=r"^input 'dense' has dtype float64; expected float"):
        runtime.run(given)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda t: t[:, :2], InputShapeError, r"input 'ids_1' has shape \(4, 2\); expected int64"),
        (lambda t: t[:2], InputShapeError, "input 'ids_1' has 2 rows, but input 'dense' has 4"),
        (lambda t: t[0, 0], InputShapeError, r"input 'ids_1' has shape \(\); expected int64"),
    ],
)
def test_wrong_shapes(
    runtime: Runtime, shop: Any, wrong: Any, error: type[Exception], message: str
) -> None:
    given = tensors(shop.request(4))
    given["ids_1"] = wrong(given["ids_1"])
    with pytest.raises(error, match=f"^{message}"):
        runtime.run(given)


def test_an_empty_request(runtime: Runtime, shop: Any) -> None:
    with pytest.raises(EmptyBatchError, match=r"^the request has no rows; expected 1 or more"):
        runtime.run(tensors(shop.request(0)))


def test_submitted_and_packed(shop_path: Path, shop: Any) -> None:
    """Requests on the device do not go into packs; they are answered one by one."""
    requests = [shop.request(2, seed=i) for i in range(4)]
    with Runtime.load(shop_path, serving=Serving(max_delay_us=50_000)) as runtime:
        there = [{k: OnDevice(torch.from_numpy(v)) for k, v in r.items()} for r in requests]
        futures = [runtime.submit(request) for request in (there[0], requests[1], there[2])]
        for request, future in zip(requests, futures, strict=False):
            agree(future.result(timeout=30), shop.answer(request))
