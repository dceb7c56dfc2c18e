"""The protocol over HTTP: one Starlette application."""

from __future__ import annotations

import asyncio
import contextlib
import json
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from recreplay.tools.serve import describe
from recreplay.tools.serve.protocol import (
    ProtocolError,
    check_outputs,
    flag_of,
    parse_infer,
    render_infer,
    select,
)
from recreplay.tools.serve.service import Service, http_status, message

HEADER = "Inference-Header-Content-Length"
# How much of a body that is refused is still read, so that its client can read the answer.
_DISCARDED = 64 << 20  # bytes
_DISCARDING = 5.0  # seconds
_SILENT = 0.2  # seconds without a byte, after which nothing is waited for
_WINDOWS = {"gzip": 31, "deflate": 15}  # window bits of zlib, which say the format


class BodyError(Exception):
    """A body that is not read to its end; `status` is the answer's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def build_app(service: Service, max_body: int, read_seconds: float) -> Starlette:
    """`max_body`: bytes of a request, also after decompression; `read_seconds`: how long a client
    may take to send one."""
    api = _Api(service, max_body, read_seconds)
    model = "/v2/models/{name}"
    prefixes = (model, f"{model}/versions/{{version}}")
    routes = [Route(f"{prefix}/infer", api.infer, methods=["POST"]) for prefix in prefixes]
    routes += [  # looked through in this order for each request
        Route("/v2", api.server),
        Route("/v2/", api.server),  # as the protocol's OpenAPI file has it
        Route("/v2/health/live", api.live),
        Route("/v2/health/ready", api.ready),
        Route("/v2/models/stats", api.all_stats),
        Route("/v2/repository/index", api.index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", api.load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", api.unload, methods=["POST"]),
    ]
    for prefix in prefixes:
        routes += [
            Route(prefix, api.model),
            Route(f"{prefix}/ready", api.model_ready),
            Route(f"{prefix}/config", api.config),
            Route(f"{prefix}/stats", api.stats),
        ]
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _http_error, Exception: _failure},
    )
    app.router.redirect_slashes = False
    return app


Handler = Callable[["_Api", Request], Awaitable[Response]]


def _answered(handler: Handler) -> Handler:
    """Errors become `{"error": ...}` and their status."""

    async def wrapped(self: _Api, request: Request) -> Response:
        try:
            return await handler(self, request)
        except BodyError as error:
            # What is left of the body is not read, so the connection cannot go on. A client that
            # is still sending would miss the answer if it were closed at once.
            await _discard(request)
            headers = {"Connection": "close"}
            return JSONResponse({"error": str(error)}, error.status, headers)
        except ClientDisconnect:
            return Response(status_code=499)
        except asyncio.CancelledError:
            if not self._service.stopping:
                raise
            # The time to drain is over; uvicorn would log the traceback of each request.
            headers = {"Connection": "close"}
            return JSONResponse({"error": "the server is stopping"}, 503, headers)
        except Exception as error:
            return JSONResponse({"error": message(error)}, http_status(error))

    return wrapped


class _Api:
    def __init__(self, service: Service, max_body: int, read_seconds: float) -> None:
        self._service = service
        self._max_body = max_body
        self._read_seconds = read_seconds

    async def server(self, request: Request) -> Response:
        return JSONResponse(describe.server())

    # Triton and its clients go by the status alone. The protocol's own text has bodies, which
    # KServe's client reads.
    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        ready = self._service.is_ready()
        return JSONResponse({"live": True, "ready": ready}, 200 if ready else 400)

    @_answered
    async def model(self, request: Request) -> Response:
        name, version = _named(request)
        return JSONResponse(describe.model(name, self._service.repository.get(name, version)))

    async def model_ready(self, request: Request) -> Response:
        name, version = _named(request)
        ready = self._service.model_ready(name, version)
        return JSONResponse({"name": name, "ready": ready}, 200 if ready else 400)

    @_answered
    async def config(self, request: Request) -> Response:
        name, version = _named(request)
        return JSONResponse(describe.config(name, self._service.repository.get(name, version)))

    @_answered
    async def stats(self, request: Request) -> Response:
        found = self._service.statistics(*_named(request))
        return JSONResponse({"model_stats": [found]})

    @_answered
    async def all_stats(self, request: Request) -> Response:
        return JSONResponse({"model_stats": self._service.all_statistics()})

    @_answered
    async def index(self, request: Request) -> Response:
        wanted = _object(await self._body(request))
        ready = flag_of(wanted, "ready")
        # Off the loop, whose requests do not wait for a storage that is slow.
        found = await asyncio.to_thread(describe.index, self._service.repository, ready)
        return JSONResponse(found)

    @_answered
    async def load(self, request: Request) -> Response:
        parameters = _object(await self._body(request)).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ProtocolError("'parameters' is no object")
        if parameters:
            raise ProtocolError(
                f"load takes no parameters here, got {', '.join(sorted(parameters))}; it loads the "
                "newest version in the repository"
            )
        name = request.path_params["name"]
        await asyncio.to_thread(self._service.load, name)
        return Response(status_code=200)

    @_answered
    async def unload(self, request: Request) -> Response:
        await self._body(request)
        await asyncio.to_thread(self._service.unload, request.path_params["name"])
        return Response(status_code=200)

    @_answered
    async def infer(self, request: Request) -> Response:
        name, version = _named(request)
        served = self._service.repository.get(name, version)  # unknown ones are said before a body
        asked = parse_infer(await self._body(request), header_length(request))
        check_outputs(asked.outputs, served.output_names(), name)
        answering, outputs = await self._service.infer(
            name, version, asked.inputs, asked.deadline_us
        )
        chosen = select(outputs, asked.outputs, name)
        body, head = render_infer(asked, name, answering, chosen)
        if head is None:
            return Response(body, media_type="application/json")
        return Response(body, headers={HEADER: str(head)}, media_type="application/octet-stream")

    async def _body(self, request: Request) -> bytes:
        """The whole body, decompressed; refused as soon as it is too long."""
        limit = self._max_body
        too_long = BodyError(413, f"the request has more than {limit} bytes (--max-body)")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise too_long
        found = bytearray()
        try:
            async with asyncio.timeout(self._read_seconds):
                async for chunk in request.stream():
                    found += chunk
                    if len(found) > limit:
                        raise too_long
        except TimeoutError:
            raise BodyError(
                408, f"the request was not sent within {self._read_seconds:g} s (--read-seconds)"
            ) from None
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding == "identity":
            return bytes(found)
        if encoding not in _WINDOWS:
            raise BodyError(415, f"Content-Encoding {encoding!r}; expected gzip or deflate")
        unpacker = zlib.decompressobj(_WINDOWS[encoding])
        try:
            plain = unpacker.decompress(bytes(found), limit + 1)
        except zlib.error as error:
            raise ProtocolError(f"the body is not {encoding}: {error}") from error
        if len(plain) > limit:
            raise too_long
        if not unpacker.eof:
            raise ProtocolError(f"the body is not all of a {encoding} stream")
        return plain


async def _discard(request: Request) -> None:
    """Read on for a while, and forget it."""
    left, now = _DISCARDED, asyncio.get_running_loop().time
    end = now() + _DISCARDING
    # RuntimeError: there is nothing left, the body was read to its end.
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(_SILENT) as clock:
            async for chunk in request.stream():
                left -= len(chunk)
                if left < 0:
                    return
                clock.reschedule(min(end, now() + _SILENT))


def _named(request: Request) -> tuple[str, str | None]:
    return request.path_params["name"], request.path_params.get("version")


def header_length(request: Request) -> int | None:
    """How many bytes of a body are JSON, where binary tensors follow."""
    text = request.headers.get(HEADER)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 18:
        raise ProtocolError(f"{HEADER} is {text!r}; expected a number of bytes")
    return int(text)


def _object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"failed to parse the request JSON: {error}") from error
    if not isinstance(data, dict):
        raise ProtocolError("the request is no JSON object")
    return data


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _failure(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": message(error)}, 500)
