"""One model on two runtimes: which of them answers, and what happens when one is lost."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recreplay.runtime import Funnel, Offload, Runtime, Stage
from recreplay.runtime.errors import (
    InputNameError,
    InputShapeError,
    LanesLostError,
    OffloadError,
    RuntimeClosedError,
)

FROM = 5


@pytest.fixture
def both(shop_path: Path) -> Iterator[Offload]:
    """The same artifact twice; one of them stands for that of an accelerator."""
    with Runtime.load(shop_path) as host, Runtime.load(shop_path) as accelerator:
        yield Offload(host, accelerator, FROM)


def answered(both: Offload) -> tuple[int, int]:
    stats = both.stats()
    return stats["host"]["requests"], stats["accelerator"]["requests"]


def agree(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(got) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, FROM - 1, FROM, 20])
def test_large_requests_are_the_accelerators(both: Offload, shop: Any, rows: int) -> None:
    request = shop.request(rows)
    for got in (
        both.run(request),
        both.submit(request).result(30),
        asyncio.run(both.arun(request)),
    ):
        agree(got, shop.answer(request))
    assert answered(both) == ((0, 3) if rows >= FROM else (3, 0))
    stats = both.stats()
    assert (stats["offloaded"], stats["taken_over"]) == (3 * (rows >= FROM), 0)


def lose(both: Offload, shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next replay of the accelerator fails, and no lane can be made anew."""

    def fail(*given: object) -> Any:
        raise RuntimeError("the context is gone")

    accelerator = both.accelerator
    monkeypatch.setattr(accelerator, "_loader", None)
    monkeypatch.setattr(accelerator._lanes, "_make", fail)
    monkeypatch.setattr(accelerator._replayer, "launch", lambda *given: _broken())


def _broken() -> Any:
    from recreplay.runtime.errors import ReplayError

    raise ReplayError("the replay failed")


def test_the_host_takes_over_when_the_accelerator_is_lost(
    both: Offload, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = shop.request(9)
    lose(both, shop, monkeypatch)
    with pytest.raises(Exception, match="the replay failed"):
        both.run(request)  # which one request is told, as by any runtime
    assert both.accelerator.lanes_alive() == 0
    for got in (both.run(request), both.submit(request).result(30)):
        agree(got, shop.answer(request))
    stats = both.stats()
    assert (stats["offloaded"], stats["taken_over"]) == (0, 2)
    assert answered(both) == (2, 0)


def test_what_waited_when_it_was_lost_is_answered_by_the_host(
    both: Offload, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [shop.request(9, seed=seed) for seed in range(4)]
    lease = both.accelerator._lanes.take()
    futures = [both.submit(request) for request in requests]
    time.sleep(0.05)
    lose(both, shop, monkeypatch)
    both.accelerator._lanes.mend(lease)
    for request, future in zip(requests, futures, strict=True):
        agree(future.result(30), shop.answer(request))
    assert both.stats()["taken_over"] == 4

    def lost(*given: object, **named: object) -> Any:
        raise LanesLostError("lost")

    monkeypatch.setattr(both.accelerator, "lanes_alive", lambda: 1)
    monkeypatch.setattr(both.accelerator, "run", lost)
    agree(both.run(requests[0]), shop.answer(requests[0]))
    assert both.stats()["taken_over"] == 5


def test_wrong_requests_are_told_of_once(both: Offload, shop: Any) -> None:
    request = shop.request(9)
    wrong: list[tuple[Any, type[Exception]]] = [
        ({}, InputNameError),
        ({**request, "dense": request["dense"][:, :1]}, InputShapeError),
        ({**request, "dense": 7}, InputShapeError),
    ]
    for given, error in wrong:
        for ask in (both.run, lambda given: both.submit(given).result(10)):
            with pytest.raises(error):
                ask(given)
    assert answered(both) == (0, 0)


def test_both_are_refreshed(both: Offload, shop: Any) -> None:
    name, (dtype, shape) = next(iter(both.host.weights().items()))
    both.update_weights({name: np.zeros(shape, dtype)})
    table = next(iter(both.host.manifest.tables), None)
    for rows in (2, 9):
        request = shop.request(rows)
        with pytest.raises(AssertionError):
            agree(both.run(request), shop.answer(request))
    assert [both.stats()[k]["refreshes"] for k in ("host", "accelerator")] == [1, 1]
    if table is not None:
        width = both.host.weights()[table][1][1]
        both.update_rows(table, np.array([0]), np.zeros((1, width), np.float32))
        assert [both.stats()[k]["refreshes"] for k in ("host", "accelerator")] == [2, 2]


def test_what_nobody_waits_for_is_not_replayed(both: Offload, shop: Any) -> None:
    lease = both.accelerator._lanes.take()
    first = both.submit(shop.request(9))
    time.sleep(0.05)
    second = both.submit(shop.request(9))
    assert second.cancel()
    both.accelerator._lanes.put(lease)
    first.result(30)
    both.accelerator.submit(shop.request(9)).result(30)
    assert answered(both) == (0, 2)


def test_a_closed_accelerator_is_no_lost_one(both: Offload, shop: Any) -> None:
    both.accelerator.close()
    for ask in (both.run, both.submit):
        with pytest.raises(RuntimeClosedError):
            ask(shop.request(9))
    agree(both.run(shop.request(2)), shop.answer(shop.request(2)))


def test_two_models_are_refused(shop_path: Path, narrow_path: Path, captured: Any) -> None:
    import torch
    from torch import nn

    other = captured(nn.Linear(3, 1).eval(), {"input": torch.randn(4, 3)})
    with Runtime.load(shop_path) as host, Runtime.load(other) as accelerator:
        message = rf"^{re.escape(str(accelerator.path))} takes and gives \(input rows float32\[n, 3"
        with pytest.raises(OffloadError, match=message):
            Offload(host, accelerator, 4)
        for wrong in (0, 2.5, True):
            with pytest.raises(OffloadError, match=r"^from_rows is .*; expected a whole number, 1"):
                Offload(host, host, wrong)  # type: ignore[arg-type]
    with Runtime.load(shop_path) as host, Runtime.load(narrow_path) as accelerator:
        Offload(host, accelerator, 4)  # staged otherwise, which no request sees


def test_a_stage_of_a_funnel_may_be_on_both(both: Offload, shop: Any) -> None:
    request = shop.request(20)

    def score(outputs: Any) -> Any:
        first = next(iter(outputs.values()))
        return first.reshape(len(first), -1)[:, 0]

    whole = score(shop.answer(request))
    with Funnel([Stage(both, 4, score), Stage(both, 2, score)]) as funnel:
        for ranking in (funnel.run(request), funnel.submit(request).result(30)):
            assert ranking.rows.tolist() == np.argsort(-whole, kind="stable")[:2].tolist()
    assert answered(both) == (2, 2)  # four rows are few, twenty are many
