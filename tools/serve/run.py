"""One process that serves: HTTP and gRPC in one event loop, metrics beside it, a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

import uvicorn
from prometheus_client import CollectorRegistry, start_http_server

from recreplay.runtime import ModelRepository
from recreplay.runtime.errors import RecReplayError
from recreplay.tools.interpreter import prepare_for_load
from recreplay.tools.serve.grpc_server import start_grpc
from recreplay.tools.serve.heads import timed_heads
from recreplay.tools.serve.http_app import build_app
from recreplay.tools.serve.metrics import ServiceCollector
from recreplay.tools.serve.service import Service

_REFUSING = 0.25  # seconds


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where to listen (port 0 takes any) and what to bear with."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    max_body: int = 64 << 20  # bytes
    read_seconds: float = 30.0
    drain_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Ports:
    http: int
    grpc: int
    metrics: int


class _Http(uvicorn.Server):
    """Leaves signals to us: uvicorn would end the process before gRPC has drained."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    repository: ModelRepository,
    options: ServerOptions,
    report: Callable[[str], None],
    listening: Callable[[Ports], None],
    stop: asyncio.Event,
) -> None:
    """Listen, load the models, serve until `stop`, answer what was accepted.

    `listening` is called when the ports are open, before any model is loaded: until then the
    server is live and not ready.
    """
    service = Service(repository)
    bound = _listen(options.host, options.http_port)
    app = build_app(service, options.max_body, options.read_seconds)
    config = uvicorn.Config(
        app,
        http=timed_heads(options.read_seconds),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=ceil(options.drain_seconds),
    )
    http = _Http(config)
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service))
    with _listening(options.host, options.metrics_port, "--metrics-port"):
        metrics, thread = start_http_server(options.metrics_port, options.host, registry)
    with _listening(options.host, options.grpc_port, "--grpc-port"):
        grpc, grpc_port = await start_grpc(
            service, options.host, options.grpc_port, options.max_body
        )
    serving = asyncio.create_task(http.serve(sockets=[bound]))
    listening(Ports(bound.getsockname()[1], grpc_port, metrics.server_address[1]))
    stopped = asyncio.create_task(stop.wait())
    loading = asyncio.create_task(_load(service, report))
    try:
        await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            await stopped
    finally:
        report("stopping: answering what was accepted")
        service.stopping = True  # which also ends the loading after the model that it is at
        http.should_exit = True
        # gRPC's core cancels calls that no handler has taken yet when it is stopped
        # (grpc/grpc#41785), so for a moment they are taken and refused.
        await asyncio.sleep(_REFUSING)
        await asyncio.gather(serving, grpc.stop(options.drain_seconds))
        await asyncio.gather(loading, return_exceptions=True)
        await asyncio.to_thread(repository.close)
        metrics.shutdown()
        metrics.server_close()
        thread.join()


async def _load(service: Service, report: Callable[[str], None]) -> None:
    """Load every model and say what became of it, unless the server is to stop meanwhile."""
    await asyncio.to_thread(prepare_for_load)
    for failure in await asyncio.to_thread(service.start):
        report(str(failure))
    if not service.stopping:
        report("ready" if service.is_ready() else "not ready: no model could be loaded")


@contextlib.contextmanager
def _listening(host: str, port: int, option: str) -> Iterator[None]:
    """What keeps a port from being opened is told with the option that names another."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # of sockets, and of gRPC
        raise RecReplayError(
            f"cannot listen on {host}:{port}: {error}; choose another by {option}, or 0 for any"
        ) from error


def _listen(host: str, port: int) -> socket.socket:
    six = ":" in host
    dual = six and socket.has_dualstack_ipv6()  # `::` is every interface, as it is to gRPC
    family = socket.AF_INET6 if six else socket.AF_INET
    with _listening(host, port, "--http-port"):
        bound = socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=dual)
    # Connections take it over. Asyncio sees to it only where it opens the socket itself, and
    # without it the body of an answer waits 40 ms for the client to acknowledge its head.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def serve_until_signal(
    repository: ModelRepository,
    options: ServerOptions,
    report: Callable[[str], None],
    listening: Callable[[Ports], None],
) -> None:
    """`serve` until SIGTERM or SIGINT."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(repository, options, report, listening, stop)

    asyncio.run(main())
