"""Processes that are forked once an artifact is loaded, as servers with workers do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ROWS, WIDTH = 1 << 18, 64  # 64 MB


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).sum(1)


_WORKERS = """
import os, sys
import numpy as np
from recreplay.runtime import Runtime, Serving

runtime = Runtime.load(sys.argv[1], serving=Serving(lanes=2, max_delay_us=0))
runtime.update_rows("table.weight", np.arange(2000), np.ones((2000, 64), np.float32))
request = {"ids": np.arange(0, 1 << 18, 1000)}
want = runtime.run(request)["output"]

def private():
    with open("/proc/self/smaps_rollup") as file:
        sizes = dict(line.split()[:2] for line in file if line.startswith("Private_Dirty"))
    return int(sizes["Private_Dirty:"]) >> 10

def work():
    for future in [runtime.submit(request) for _ in range(20)]:
        np.testing.assert_array_equal(future.result()["output"], want)
    np.testing.assert_array_equal(runtime.run(request)["output"], want)
    with runtime.borrow(2) as borrowed:
        borrowed.inputs["ids"][:] = request["ids"][:2]
        np.testing.assert_array_equal(borrowed.run()["output"], want[:2])
    print(f"{private()}\\n", end="", flush=True)  # in one piece, beside others

children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        work()
        if number == 1:
            row = np.full((1, 64), 2.0, np.float32)
            runtime.update_rows("table.weight", np.array([0]), row)
            assert runtime.run(request)["output"][0] == 128
            rows = np.full((2000, 64), 1.0, np.float32)  # so many that torch shares them out
            runtime.update_rows("table.weight", np.arange(2000), rows)
            assert runtime.run(request)["output"][1] == 64
        if number == 2:
            runtime.close()
        sys.exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
work()
runtime.close()
"""


def _python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells the memory")
def test_workers_share_the_weights_of_the_process_that_loaded_them(captured: Any) -> None:
    path = captured(Large(), {"ids": torch.tensor([1, 2])})
    ended = _python(_WORKERS, path)
    assert ended.returncode == 0, ended.stderr
    *workers, loader = map(int, ended.stdout.split())
    assert loader > 64
    assert len(workers) == 3
    assert max(workers) < 32


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


_FORKED = """
import os, sys
import numpy as np
from recreplay.runtime import Runtime

runtime = Runtime.load(sys.argv[1])
request = {"ids": np.zeros(3, np.int64)}
runtime.submit(request).result()
child = os.fork()
if child == 0:
    print(len(runtime.run(request)["output"]))
    try:
        runtime.submit(request)
    except Exception as error:
        print(error, flush=True)
    runtime.close()
    os._exit(0)
os.waitpid(child, 0)
runtime.submit(request).result()
"""


def test_a_forked_process_is_told_that_the_threads_stayed(captured: Any) -> None:
    path = captured(Small(), {"ids": torch.tensor([1, 2])})
    ended = _python(_FORKED, path)
    assert ended.returncode == 0, ended.stderr
    rows, said = ended.stdout.splitlines()
    assert rows == "3"
    assert said.startswith(
        "this Runtime answered submitted requests before this process was forked"
    )
