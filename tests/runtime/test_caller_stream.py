"""Another thread reads what the caller's stream writes: what it is made to wait for, without a
GPU."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recreplay.runtime import Runtime, Serving
from recreplay.runtime.caller_stream import settle


class There(torch.Tensor):
    """As if it were on a GPU."""

    device = torch.device("cuda:1")  # type: ignore[assignment]


class Exported:
    """Of another library."""

    def __init__(self, kind: int) -> None:
        self.kind = kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of torch's streams; `current` says which one is."""
    asked: list[tuple[Any, ...]] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def wait_event(self, event: Any) -> None:
            asked.append(("waits", str(self.device), event.number))

    class Event:
        number = 7

        def record(self, stream: Stream) -> None:
            asked.append(("records", str(stream.device)))

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return asked


def test_an_event_a_device(log: list[tuple[Any, ...]]) -> None:
    there = torch.zeros(3).as_subclass(There)
    values, wait = settle([there, np.zeros(3), there, torch.zeros(2)])
    assert values[0] is there
    assert log == [("records", "cuda:1")]
    assert wait is not None
    wait()
    assert log[1:] == [("waits", "cuda:1", 7)]


def test_what_is_on_the_host_is_waited_for_by_nobody(log: list[tuple[Any, ...]]) -> None:
    given = [np.zeros(3), torch.zeros(2), [1, 2], Exported(1)]
    values, wait = settle(given)
    assert wait is None
    assert all(a is b for a, b in zip(values, given, strict=True))
    assert log == []


def test_other_libraries_export_on_the_callers_thread(
    log: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = torch.zeros(3).as_subclass(There)
    monkeypatch.setattr(torch.utils.dlpack, "from_dlpack", lambda value: there)
    values, wait = settle([Exported(2)])
    assert values[0] is there
    assert wait is not None


@pytest.mark.parametrize("delay", [None, 0])
@pytest.mark.parametrize("fails", [False, True])
def test_lanes_wait_before_they_read(
    shop_path: Path, shop: Any, monkeypatch: pytest.MonkeyPatch, delay: int | None, fails: bool
) -> None:
    waited = []

    def wait() -> None:
        waited.append(1)
        if fails:
            raise RuntimeError("the context is broken")

    monkeypatch.setattr("recreplay.runtime.dispatch.settle", lambda values: (values, wait))
    request = shop.request(3)
    serving = Serving(inline_us=0, max_delay_us=delay)
    with Runtime.load(shop_path, serving=serving) as runtime:
        for ask in (
            lambda: runtime.submit(request).result(30),
            lambda: asyncio.run(runtime.arun(request)),
        ):
            if fails:
                with pytest.raises(RuntimeError, match="the context is broken"):
                    ask()
            else:
                np.testing.assert_allclose(
                    ask()["score"], shop.answer(request)["score"], rtol=1e-4, atol=1e-5
                )
    assert len(waited) >= 2
