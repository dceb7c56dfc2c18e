"""The Open Inference Protocol, version 2, as data: JSON with Triton's binary tensors behind it.

https://github.com/kserve/open-inference-protocol, and Triton's extension "binary tensor data".
Pure functions between bytes and arrays; HTTP and gRPC share what is common to both.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from recreplay.runtime.errors import InputError
from recreplay.runtime.spec import InputSpec, OutputSpec

Array = np.ndarray[Any, Any]
PLATFORM = "recreplay"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")

_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_DTYPES = {datatype: np.dtype(dtype) for dtype, datatype in _DATATYPES.items()}


_WHOLE = 2**53  # from here on, a float does not hold every whole number
_LONGEST = _WHOLE  # microseconds


class ProtocolError(InputError):
    """A request that the protocol does not allow."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What is asked: arrays by name, which outputs (all if empty) and how they come back."""

    id: str
    inputs: dict[str, Array]
    outputs: tuple[str, ...]
    binary: frozenset[str]  # outputs that are to follow the JSON as bytes
    deadline_us: int | None


def dtype_of(datatype: Any, where: str) -> np.dtype[Any]:
    try:
        return _DTYPES[datatype]
    except (KeyError, TypeError):
        raise ProtocolError(
            f"{where} has datatype {datatype!r}; expected one of {', '.join(_DTYPES)}"
        ) from None


def datatype_of(array: Array) -> str:
    return _DATATYPES[array.dtype.name]


def from_bytes(raw: bytes | memoryview, dtype: np.dtype[Any], shape: Any, where: str) -> Array:
    """An array over `raw`, little-endian and row by row."""
    sizes = check_shape(shape, where)
    expected = prod(sizes) * dtype.itemsize
    if len(raw) != expected:
        raise ProtocolError(
            f"{where} has {len(raw)} bytes; expected {expected} for shape {list(sizes)}"
        )
    return _shaped(np.frombuffer(raw, dtype), sizes, where)


def _shaped(array: Array, sizes: tuple[int, ...], where: str) -> Array:
    """`array`, which has as many numbers as the shape."""
    try:
        return array.reshape(sizes)
    except (ValueError, OverflowError) as error:  # a size of 0 hides sizes that no array has
        raise ProtocolError(f"{where} has shape {list(sizes)}: {error}") from error


def check_shape(shape: Any, where: str) -> tuple[int, ...]:
    if not isinstance(shape, (list, tuple)) or not all(type(d) is int and d >= 0 for d in shape):
        raise ProtocolError(f"{where} has shape {shape!r}; expected a list of sizes")
    return tuple(shape)


def timeout_of(value: Any) -> int | None:
    """The request parameter `timeout`, in microseconds; 0 is none, as for Triton."""
    if value is None or value == 0:
        return None
    if type(value) is not int or value < 0:
        raise ProtocolError(f"parameter 'timeout' is {value!r}; expected microseconds")
    if value > _LONGEST:
        raise ProtocolError(f"parameter 'timeout' is more than {_LONGEST} microseconds")
    return value


def flag_of(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A parameter that is true or false; a text would be true whatever it says."""
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise ProtocolError(f"parameter {name!r} is {value!r}; expected true or false")
    return value


def refuse_extensions(parameters: Container[str]) -> None:
    """Of an input, an output or the request: what would change an answer, if it were known here."""
    if "shared_memory_region" in parameters:
        raise ProtocolError("the shared memory extensions are not supported")
    if "classification" in parameters:
        raise ProtocolError("the classification extension is not supported")


def parse_infer(body: bytes, header_length: int | None) -> InferRequest:
    """A request body; its first `header_length` bytes are JSON, the rest are binary tensors."""
    head = body if header_length is None else body[:header_length]
    if header_length is not None and not 0 <= header_length <= len(body):
        raise ProtocolError(
            f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes"
        )
    try:
        data = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"failed to parse the request JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("inputs"), list):
        raise ProtocolError("a request is a JSON object with a list 'inputs'")
    rest = memoryview(body)[len(head) :]
    inputs: dict[str, Array] = {}
    for item in data["inputs"]:
        name = _name(item, "input")
        if name in inputs:
            raise ProtocolError(f"input {name!r} is given twice")
        inputs[name], rest = _input(item, name, rest)
    if rest:
        raise ProtocolError(f"{len(rest)} bytes of the body belong to no input")
    parameters = _parameters(data)
    wanted = data.get("outputs") or []
    if not isinstance(wanted, list):
        raise ProtocolError("'outputs' is no list")
    names = tuple(_name(item, "output") for item in wanted)
    everywhere = flag_of(parameters, "binary_data_output")
    chosen = [
        name
        for name, item in zip(names, wanted, strict=True)
        if flag_of(_parameters(item), "binary_data", everywhere)
    ]
    binary = frozenset(chosen) if names else frozenset({"*"} if everywhere else ())
    return InferRequest(_id(data), inputs, names, binary, timeout_of(parameters.get("timeout")))


def _id(data: dict[str, Any]) -> str:
    found = data.get("id")
    if found is None:
        return ""
    if type(found) not in (str, int):
        raise ProtocolError(f"'id' is {found!r}; expected a string")
    return str(found)


def _name(item: Any, kind: str) -> str:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ProtocolError(f"each {kind} is an object with a 'name'")
    name = str(item["name"])
    try:
        name.encode()
    except UnicodeEncodeError as error:  # half of a pair, which JSON can escape
        raise ProtocolError(f"the name of an {kind} is no text: {error.reason}") from None
    return name


def _parameters(data: dict[str, Any]) -> dict[str, Any]:
    found = data.get("parameters") or {}
    if not isinstance(found, dict):
        raise ProtocolError("'parameters' is no object")
    refuse_extensions(found)
    return found


def _input(item: dict[str, Any], name: str, rest: memoryview) -> tuple[Array, memoryview]:
    where = f"input {name!r}"
    dtype = dtype_of(item.get("datatype"), where)
    size = _parameters(item).get("binary_data_size")
    if size is not None:
        if type(size) is not int or not 0 <= size <= len(rest):
            raise ProtocolError(
                f"{where} has binary_data_size {size!r}; {len(rest)} bytes are left of the body"
            )
        return from_bytes(rest[:size], dtype, item.get("shape"), where), rest[size:]
    sizes = check_shape(item.get("shape"), where)
    if "data" not in item:
        raise ProtocolError(f"{where} has no 'data'; expected numbers")
    array = _from_json(item["data"], dtype, where)
    if array.size != prod(sizes):
        raise ProtocolError(
            f"{where} has {array.size} numbers; expected {prod(sizes)} for shape {list(sizes)}"
        )
    return _shaped(array, sizes, where), rest


def _from_json(data: Any, dtype: np.dtype[Any], where: str) -> Array:
    """Numbers as they are meant, or an error: numpy would make a NaN of null, and a number of a
    text."""
    try:
        values = np.array(data)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"{where}: {error!r}; expected 'data' with numbers") from error
    large = values.dtype.kind == "O" and all(type(v) is int for v in values.flat)
    if values.dtype.kind not in "biuf" and not large:
        raise ProtocolError(
            f"{where} has 'data' that are not all numbers (a null, a string or an object); "
            "expected numbers"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        array = values if large else values.astype(dtype)
    exact = dtype.kind in "biu"
    if exact and values.dtype.kind == "f" and (np.abs(values) >= _WHOLE).any():
        raise ProtocolError(
            f"{where} has numbers of 2**53 and more; expected all of its 'data' as whole numbers, "
            "not as floats, which round them"
        )
    if large or (exact and not (values == array).all()) or np.isinf(array).any():
        raise ProtocolError(f"{where} has numbers that {_DATATYPES[dtype.name]} cannot hold")
    return array


def check_outputs(names: Sequence[str], known: Iterable[str], model: str) -> None:
    """Refuse outputs that the model does not have: before it replays, which would be for nothing
    and be counted as an answer."""
    has = list(known)
    unknown = [name for name in names if name not in has]
    if unknown:
        raise ProtocolError(
            f"unexpected inference output {unknown[0]!r} for model {model!r}; it has "
            f"{', '.join(has)}"
        )


def select(outputs: Mapping[str, Array], names: Sequence[str], model: str) -> dict[str, Array]:
    """The outputs that were asked for, in that order; all if none was named."""
    check_outputs(names, outputs, model)
    return {name: outputs[name] for name in names} if names else dict(outputs)


def render_infer(
    request: InferRequest, model: str, version: str, outputs: Mapping[str, Array]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where binary tensors follow."""
    described, tail = [], []
    for name, array in outputs.items():
        item: dict[str, Any] = {
            "name": name,
            "datatype": datatype_of(array),
            "shape": list(array.shape),
        }
        if name in request.binary or "*" in request.binary:
            raw = np.ascontiguousarray(array).tobytes()
            item["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            item["data"] = array.ravel().tolist()
        described.append(item)
    data: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id:
        data["id"] = request.id
    try:
        head = json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        raise ProtocolError(
            "an output is NaN or infinite, which JSON cannot say; ask for binary outputs"
        ) from None
    return head + b"".join(tail), len(head) if tail else None


def tensors(specs: Iterable[InputSpec | OutputSpec]) -> list[dict[str, Any]]:
    """Inputs or outputs as model metadata describes them; -1 is any number of rows."""
    return [{"name": s.name, "datatype": _DATATYPES[s.dtype], "shape": [-1, *s.row]} for s in specs]
