"""`recreplay serve`: a model repository behind the Open Inference Protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recreplay.runtime.errors import RecReplayError
from recreplay.tools.console import report_notice


def serve(
    repository: Annotated[
        Path, typer.Argument(help="A directory NAME/VERSION/ of artifacts.", show_default=False)
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 takes any.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 takes any.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Prometheus port; 0 takes any.")] = 8002,
    device: Annotated[
        str | None, typer.Option(help="Where to run. [dim]Default: each artifact's device.[/]")
    ] = None,
    check: Annotated[
        str, typer.Option(help="Ids outside of their table: error, clamp or off.")
    ] = "error",
    max_body: Annotated[int, typer.Option(help="The most bytes of a request.")] = 64 << 20,
    read_seconds: Annotated[
        float, typer.Option(help="How long a client may take to send a request.")
    ] = 30.0,
    drain_seconds: Annotated[
        float, typer.Option(help="How long what was accepted may take after SIGTERM.")
    ] = 30.0,
) -> None:
    """Serve models over HTTP and gRPC until SIGTERM."""
    try:
        from recreplay.tools.serve.run import Ports, ServerOptions, serve_until_signal
    except ImportError as error:
        raise RecReplayError(
            f"serving needs more packages ({error}); pip install 'recreplay[serve]'"
        ) from error
    from recreplay.runtime import ModelRepository

    options = ServerOptions(
        host, http_port, grpc_port, metrics_port, max_body, read_seconds, drain_seconds
    )
    models = ModelRepository(repository, device=device, check=check)  # type: ignore[arg-type]

    def listening(ports: Ports) -> None:
        report_notice(
            f"listening on {host}: HTTP {ports.http}, gRPC {ports.grpc}, metrics {ports.metrics}"
        )

    serve_until_signal(models, options, report_notice, listening)
