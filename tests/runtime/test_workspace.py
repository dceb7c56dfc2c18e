"""Memory that a lane keeps for what its packages make in between."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from recreplay.capture import capture
from recreplay.capture.compilers.c_library import build_c_library
from recreplay.capture.compilers.toolchain import inductor_problem
from recreplay.runtime import Runtime
from recreplay.runtime.workspace import Workspace

_TAKE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_GIVE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


class Memory:
    """A workspace, as packages call it."""

    def __init__(self, library: Path) -> None:
        self.workspace = Workspace(library)
        at = self.workspace.address
        take, give = (ctypes.c_void_p.from_address(at + 8 * i).value for i in (0, 1))
        self._take, self._give = _TAKE(take), _GIVE(give)

    def take(self, size: int) -> int:
        at: int = self._take(self.workspace.address, size)
        return at

    def give(self, at: int) -> None:
        self._give(at, self.workspace.address)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if problem := inductor_problem("cpu"):
        pytest.skip(problem)
    path = tmp_path_factory.mktemp("launch") / "launch.so"
    build_c_library("launch.c", path)
    return path


@pytest.fixture
def memory(library: Path) -> Iterator[Memory]:
    made = Memory(library)
    yield made
    made.workspace.close()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 9)), max_size=60), st.integers(1, 4))
def test_what_is_taken_is_nobody_elses(
    memory: Memory, steps: list[tuple[int, int]], rounds: int
) -> None:
    """Each buffer keeps what was written into it until it is given back, in whatever order."""
    for _ in range(rounds):
        held: list[tuple[int, int, int]] = []

        def drop(which: int, held: list[tuple[int, int, int]] = held) -> None:
            at, size, mark = held.pop(which % len(held))
            assert ctypes.string_at(at, size) == bytes([mark]) * size
            memory.give(at)

        for number, (size, dropped) in enumerate(steps):
            at = memory.take(size)
            assert at % 64 == 0
            ctypes.memset(at, number, size)
            held.append((at, size, number))
            if dropped < 6:
                drop(dropped)
        for which in range(len(held)):
            drop(which)


def test_a_replay_takes_what_the_one_before_had(memory: Memory) -> None:
    """The region is as large as a replay had to have it, and none moves afterwards."""

    def replay() -> list[int]:
        first, second = memory.take(3_000_000), memory.take(1_000_000)
        memory.give(first)
        third = memory.take(2_000_000)
        memory.give(second)
        memory.give(third)
        return [first, second, third]

    replay()  # by the system's memory
    once = replay()
    assert once == replay()
    assert once[2] == once[0] < once[1] <= once[0] + 3_100_000


def test_buffers_in_use_do_not_move_when_more_is_wanted(memory: Memory) -> None:
    memory.give(memory.take(100))
    small = memory.take(100)
    large = memory.take(1_000_000)
    ctypes.memset(small, 1, 100)
    ctypes.memset(large, 2, 1_000_000)
    memory.give(large)
    assert ctypes.string_at(small, 100) == b"\1" * 100
    memory.give(small)


class Wide(nn.Module):
    """Two layers of some MB a value each, all of which are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 4096) for _ in range(4))
        self.last = nn.Linear(4096, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [torch.softmax(layer(x), 1) for layer in self.layers]
        shares = torch.stack(values).softmax(0)
        found: torch.Tensor = self.last((shares * torch.stack(values)).sum(0))
        return found


@pytest.mark.parametrize("lanes", [1, 2])
def test_replays_ask_the_system_for_no_memory(tmp_path: Path, lanes: int) -> None:
    if problem := inductor_problem("cpu"):
        pytest.skip(problem)
    example = {"x": torch.randn(256, 64)}
    out = tmp_path / "wide.rr"
    capture(Wide().eval(), example, out=out, buckets=[16, 256])
    x = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    with Runtime.load(out, lanes=lanes) as rt:
        expected = [rt.run({"x": x[:n]})["output"] for n in (16, 256)]
        faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for _ in range(50):
            for n, before in zip((16, 256), expected, strict=True):
                assert np.array_equal(rt.run({"x": x[:n]})["output"], before)
        asked = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - faults
    assert asked < 50  # 4 KiB each; by the system's allocator it is some thousands a replay
