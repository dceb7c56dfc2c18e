"""`recreplay serve`: a model repository behind the Open Inference Protocol."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from recreplay.runtime.errors import RecReplayError
from recreplay.tools.console import report_notice

MOST_PORT = 65_535
MOST_BODY = 2**31 - 1  # bytes: gRPC's option is a C int
# What `pip install 'recreplay[serve]'` brings.
_EXTRA = {
    "starlette",
    "uvicorn",
    "httptools",
    "grpc",
    "google",
    "tritonclient",
    "prometheus_client",
}


def serve(
    repository: Annotated[
        Path,
        typer.Argument(
            help="A directory NAME/VERSION/ of artifacts and funnels; NAME/serving.json says how "
            "they are served.",
            show_default=False,
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 or :: for every interface.")
    ] = "127.0.0.1",
    http_port: Annotated[
        int, typer.Option(help="HTTP port; 0 takes any.", min=0, max=MOST_PORT)
    ] = 8000,
    grpc_port: Annotated[
        int, typer.Option(help="gRPC port; 0 takes any.", min=0, max=MOST_PORT)
    ] = 8001,
    metrics_port: Annotated[
        int, typer.Option(help="Prometheus port; 0 takes any.", min=0, max=MOST_PORT)
    ] = 8002,
    device: Annotated[
        str | None, typer.Option(help="Where to run. [dim]Default: each artifact's device.[/]")
    ] = None,
    check: Annotated[
        str, typer.Option(help="Ids outside of their table: error, clamp or off.")
    ] = "error",
    max_body: Annotated[
        int, typer.Option(help="The most bytes of a request.", min=1, max=MOST_BODY)
    ] = 64 << 20,
    read_seconds: Annotated[
        float, typer.Option(help="How long a client may take to send a request.", min=0.001)
    ] = 30.0,
    drain_seconds: Annotated[
        float, typer.Option(help="How long what was accepted may take after SIGTERM.", min=0)
    ] = 30.0,
) -> None:
    """Serve models over HTTP and gRPC until SIGTERM."""
    from recreplay.runtime.fill import CHECKS

    if check not in CHECKS:
        raise RecReplayError(f"--check {check!r}; expected one of {', '.join(CHECKS)}")
    for option, seconds in (("--read-seconds", read_seconds), ("--drain-seconds", drain_seconds)):
        if not isfinite(seconds):
            raise RecReplayError(f"{option} is {seconds:g}; expected a finite number of seconds")
    try:
        from recreplay.tools.serve.run import Ports, ServerOptions, serve_until_signal
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise RecReplayError(
            f"serving needs more packages ({error}); pip install 'recreplay[serve]'"
        ) from error
    from recreplay.runtime import ModelRepository

    options = ServerOptions(
        host, http_port, grpc_port, metrics_port, max_body, read_seconds, drain_seconds
    )
    models = ModelRepository(repository, device=device, check=check)

    def listening(ports: Ports) -> None:
        report_notice(
            f"listening on {host}: HTTP {ports.http}, gRPC {ports.grpc}, metrics {ports.metrics}"
        )

    serve_until_signal(models, options, report_notice, listening)
