"""The emulator finds what it is there for: each fault that CUDA would punish is seen here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

NAME = "Emulated (no GPU)"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_name() != NAME,
    reason="for the emulated device: tests/emulated/run.py",
)


@pytest.fixture
def main() -> Iterator[torch.cuda.Stream]:
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        yield stream


def fails_to_end(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    with pytest.raises(torch.AcceleratorError):
        graph.capture_end()
    with suppress(RuntimeError):  # torch 2.11 goes on recording to the pool, for other tests, too
        torch._C._cuda_endAllocateToPool(0, pool)


def replays(graph: torch.cuda.CUDAGraph, source: torch.Tensor, out: torch.Tensor) -> set[float]:
    """How many times its input comes out, in replays that each run their nodes in another order."""
    graph.instantiate()
    found = set()
    for turn in range(60):
        source.fill_(1 + turn % 2)
        graph.replay()
        found.add((out.sum() / source.sum()).item())
    return found


@pytest.mark.parametrize("waits", [True, False])
def test_a_wait_that_is_missing_gives_wrong_answers(main: torch.cuda.Stream, waits: bool) -> None:
    side = torch.cuda.Stream()
    value = torch.ones(4, device="cuda")
    out = torch.zeros(4, device="cuda")
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    graph.capture_begin()
    fork, done = torch.cuda.Event(), torch.cuda.Event()
    fork.record(main)
    side.wait_event(fork)
    out.copy_(value * 0)
    with torch.cuda.stream(side):
        three = value * 3
        done.record(side)
    if waits:
        main.wait_event(done)
    out.add_(three)
    main.wait_event(done)  # the join, which every capture needs
    graph.capture_end()
    assert (replays(graph, value, out) == {3.0}) == waits


def test_memory_that_is_used_again_too_early_gives_wrong_answers(main: torch.cuda.Stream) -> None:
    """Freed during capture, a block goes to the next that asks on its stream, whoever reads it."""
    side = torch.cuda.Stream()
    ones = torch.ones(1 << 10, device="cuda")
    out = torch.zeros(1 << 10, device="cuda")
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    graph.capture_begin()
    value = ones * 2
    ready = torch.cuda.Event()
    ready.record(main)
    side.wait_event(ready)
    with torch.cuda.stream(side):
        out.copy_(value)
    del value
    other = ones * 5  # takes the block, while the side stream may not have read it
    joined = torch.cuda.Event()
    joined.record(side)
    main.wait_event(joined)
    graph.capture_end()
    assert replays(graph, ones, out) == {2.0, 5.0}
    del other


def test_a_stream_that_is_not_joined_is_refused(main: torch.cuda.Stream) -> None:
    side = torch.cuda.Stream()
    value = torch.ones(4, device="cuda")
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    pool = torch.cuda.graph_pool_handle()
    graph.capture_begin(pool=pool)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        kept = value * 2
    fails_to_end(graph, pool)
    del kept


FORBIDDEN: dict[str, Callable[[torch.Tensor, torch.cuda.Event], object]] = {
    "item": lambda value, before: value.sum().item(),
    "synchronize": lambda value, before: torch.cuda.synchronize(),
    "an event from outside": lambda value, before: torch.cuda.current_stream().wait_event(before),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_a_capture_forbids_breaks_it(main: torch.cuda.Stream, what: str) -> None:
    value, before = torch.ones(4, device="cuda"), torch.cuda.Event()
    before.record(torch.cuda.default_stream())
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    pool = torch.cuda.graph_pool_handle()
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    with pytest.raises(torch.AcceleratorError):
        FORBIDDEN[what](value, before)
    fails_to_end(graph, pool)


def test_pageable_memory_is_not_copied_in_a_capture(main: torch.cuda.Stream) -> None:
    """torch refuses it, before CUDA hears of it."""
    value = torch.ones(4, device="cuda")
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    graph.capture_begin()
    kept = value * 2
    with pytest.raises(RuntimeError, match="pinned"):
        value.copy_(torch.zeros(4))
    graph.capture_end()
    del kept


@pytest.mark.parametrize("what", ["synchronize", "allocate"])
@pytest.mark.parametrize("mode", ["global", "thread_local"])
def test_what_other_threads_do_to_a_capture(main: torch.cuda.Stream, mode: str, what: str) -> None:
    """Synchronising the device ends any, allocating ends those that are not thread-local."""
    graph, refused = torch.cuda.CUDAGraph(keep_graph=True), []

    def elsewhere() -> None:
        try:
            if what == "synchronize":
                torch.cuda.synchronize()
            else:
                torch.empty(1 << 26, device="cuda")
        except torch.AcceleratorError as error:
            refused.append(error)

    torch.cuda.empty_cache()
    pool = torch.cuda.graph_pool_handle()
    graph.capture_begin(pool=pool, capture_error_mode=mode)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    if mode == "global" or what == "synchronize":
        fails_to_end(graph, pool)
        assert refused
    else:
        graph.capture_end()
        assert not refused
