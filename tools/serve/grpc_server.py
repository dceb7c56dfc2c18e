"""The protocol over gRPC: `inference.GRPCInferenceService`, with the messages of `tritonclient`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from recreplay.tools.serve import describe
from recreplay.tools.serve.protocol import (
    Array,
    ProtocolError,
    check_outputs,
    datatype_of,
    dtype_of,
    from_bytes,
    refuse_extensions,
    select,
    timeout_of,
)
from recreplay.tools.serve.service import Service, http_status, message

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    503: grpc.StatusCode.UNAVAILABLE,
    500: grpc.StatusCode.INTERNAL,
}
# Field of InferTensorContents that holds numbers of a datatype. FP16 has none: raw bytes only.
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_LOOK_AGAIN = 0.25  # seconds, in which a stream that nothing comes on sees that the server stops
Method = Callable[["Inference", Any, Any], Awaitable[Any]]


async def start_grpc(service: Service, host: str, port: int, max_body: int) -> tuple[Any, int]:
    """A running server, and the port that it has."""
    options = [
        ("grpc.max_receive_message_length", max_body),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Inference(service), server)
    address = f"[{host}]" if ":" in host else host
    bound = server.add_insecure_port(f"{address}:{port}")
    await server.start()
    return server, bound


def _answered(method: Method) -> Method:
    """Errors become a status and its text. Nothing new is begun by a server that stops."""

    async def wrapped(self: Inference, request: Any, context: Any) -> Any:
        if self._service.stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        try:
            return await method(self, request, context)
        except Exception as error:
            await context.abort(_CODES[http_status(error)], message(error))

    return wrapped


class Inference(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Methods of the service have the names of its definition."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self._service.is_ready())

    async def ModelReady(self, request: Any, context: Any) -> Any:
        ready = self._service.model_ready(request.name, request.version or None)
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(**describe.server())

    @_answered
    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        served = self._service.repository.get(request.name, request.version or None)
        return service_pb2.ModelMetadataResponse(**describe.model(request.name, served))

    @_answered
    async def ModelConfig(self, request: Any, context: Any) -> Any:
        served = self._service.repository.get(request.name, request.version or None)
        config = json_format.ParseDict(
            describe.config(request.name, served), model_config_pb2.ModelConfig()
        )
        return service_pb2.ModelConfigResponse(config=config)

    @_answered
    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        if request.name:
            found = [self._service.statistics(request.name, request.version or None)]
        else:
            found = self._service.all_statistics()
        return json_format.ParseDict({"model_stats": found}, service_pb2.ModelStatisticsResponse())

    @_answered
    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        repository = self._service.repository
        models = await asyncio.to_thread(describe.index, repository, request.ready)
        return service_pb2.RepositoryIndexResponse(models=models)

    @_answered
    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        if request.parameters:
            raise ProtocolError("load takes no parameters here; it loads the newest version")
        await asyncio.to_thread(self._service.load, request.model_name)
        return service_pb2.RepositoryModelLoadResponse()

    @_answered
    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        await asyncio.to_thread(self._service.unload, request.model_name)
        return service_pb2.RepositoryModelUnloadResponse()

    @_answered
    async def ModelInfer(self, request: Any, context: Any) -> Any:
        return await self._infer(request)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in self._until_stopping(requests):
            try:
                answer = await self._infer(request)
            except Exception as error:
                yield service_pb2.ModelStreamInferResponse(error_message=message(error))
            else:
                yield service_pb2.ModelStreamInferResponse(infer_response=answer)
        if self._service.stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    async def _until_stopping(self, requests: Any) -> AsyncIterator[Any]:
        """What comes on a stream until the server is to stop: clients keep theirs open for good."""
        coming = aiter(requests)
        while not self._service.stopping:
            asked = asyncio.ensure_future(anext(coming))
            while not asked.done():
                await asyncio.wait((asked,), timeout=_LOOK_AGAIN)
                if self._service.stopping and not asked.done():
                    asked.cancel()
                    return
            try:
                request = asked.result()
            except StopAsyncIteration:
                return
            yield request

    async def _infer(self, request: Any) -> Any:
        for part in (request, *request.outputs):
            refuse_extensions(part.parameters)
        name, version = request.model_name, request.model_version or None
        served = self._service.repository.get(name, version)
        inputs = read_inputs(request)
        wanted = [o.name for o in request.outputs]
        check_outputs(wanted, served.output_names(), name)
        timeout = _parameter(request.parameters, "timeout")
        answering, outputs = await self._service.infer(name, version, inputs, timeout_of(timeout))
        chosen = select(outputs, wanted, name)
        answer = service_pb2.ModelInferResponse(
            model_name=name, model_version=answering, id=request.id
        )
        for output, array in chosen.items():
            answer.outputs.add(name=output, datatype=datatype_of(array), shape=array.shape)
            answer.raw_output_contents.append(np.ascontiguousarray(array).tobytes())
        return answer


def _parameter(parameters: Any, name: str) -> Any:
    """A parameter's value, of whatever kind it is; None where there is none."""
    if name not in parameters:
        return None
    kind = parameters[name].WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameters[name], kind)


def read_inputs(request: Any) -> dict[str, Array]:
    """The arrays of a `ModelInferRequest`; raw contents are for all inputs or for none."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise ProtocolError(
            f"the request has {len(request.inputs)} inputs and {len(raw)} raw_input_contents"
        )
    found: dict[str, Array] = {}
    for at, item in enumerate(request.inputs):
        where = f"input {item.name!r}"
        if item.name in found:
            raise ProtocolError(f"{where} is given twice")
        refuse_extensions(item.parameters)
        dtype = dtype_of(item.datatype, where)
        shape = list(item.shape)
        if raw:
            if item.HasField("contents"):
                raise ProtocolError(f"{where} has contents beside raw_input_contents; send one")
            found[item.name] = from_bytes(raw[at], dtype, shape, where)
            continue
        if item.datatype not in _CONTENTS:
            raise ProtocolError(f"{where} of datatype {item.datatype} needs raw_input_contents")
        values = np.array(getattr(item.contents, _CONTENTS[item.datatype]))
        array = values.astype(dtype)
        if dtype.kind in "iu" and not (values == array).all():
            raise ProtocolError(f"{where} has numbers that {item.datatype} cannot hold")
        found[item.name] = from_bytes(array.tobytes(), dtype, shape, where)
    return found
