"""A server in a process of its own, over a repository that a test may change."""

from __future__ import annotations

import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

READY = 60.0  # seconds


@dataclass
class Server:
    """A running `recreplay serve`, what it said, and where it listens."""

    process: subprocess.Popen[str]
    root: Path
    said: list[str] = field(default_factory=list)
    http: int = 0
    grpc: int = 0
    metrics: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def wait_for(self, text: str, seconds: float = READY) -> str:
        """The first line on stderr, from now on, that has the text."""
        assert self.process.stderr is not None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not select.select([self.process.stderr], [], [], 0.5)[0]:
                continue
            line = self.process.stderr.readline()
            if not line:
                break
            self.said.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} was not said; what was: {''.join(self.said)}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=30)


Launch = Callable[..., Server]


def launch(root: Path, *options: str) -> Server:
    # -u: lines are read one by one, so none may stay in a buffer of the reader's.
    command = [sys.executable, "-m", "recreplay.tools.cli", "serve", str(root), *options]
    for port in ("--http-port", "--grpc-port", "--metrics-port"):
        command += [port, "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, bufsize=1)
    server = Server(process, root)
    line = server.wait_for("listening on")
    found = re.search(r"HTTP (\d+), gRPC (\d+), metrics (\d+)", line)
    assert found is not None
    server.http, server.grpc, server.metrics = map(int, found.groups())
    end = time.monotonic() + READY
    while httpx.get(f"{server.url}/v2/health/ready").status_code != 200:
        if time.monotonic() > end or process.poll() is not None:
            raise AssertionError(f"not ready; it said: {''.join(server.said)}")
        time.sleep(0.05)
    return server


@pytest.fixture(scope="session")
def make_root(shop_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    def make() -> Path:
        root = tmp_path_factory.mktemp("repository")
        shutil.copytree(shop_path, root / "shop" / "1")
        (root / "shop" / "serving.json").write_text('{"lanes": 2, "max_delay_us": 500}')
        return root

    return make


@pytest.fixture(scope="session")
def server(make_root: Callable[[], Path]) -> Iterator[Server]:
    """One server for the tests that leave it as it is."""
    running = launch(make_root(), "--max-body", "200000", "--read-seconds", "2")
    yield running
    running.stop()


@pytest.fixture
def own_server(make_root: Callable[[], Path]) -> Iterator[Launch]:
    """Servers that a test may stop and whose repository it may change."""
    started: list[Server] = []

    def start(*options: str, root: Path | None = None) -> Server:
        started.append(launch(root or make_root(), *options))
        return started[-1]

    yield start
    for one in started:
        one.stop(signal.SIGKILL)
