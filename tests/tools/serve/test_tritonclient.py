"""Triton's own clients, unmodified, over HTTP and gRPC."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc")
grpcclient = pytest.importorskip("tritonclient.grpc")
httpclient = pytest.importorskip("tritonclient.http")
utils = pytest.importorskip("tritonclient.utils")

KINDS = ["http", "grpc"]


def connect(server: Any, kind: str) -> Any:
    if kind == "http":
        return httpclient.InferenceServerClient(f"127.0.0.1:{server.http}")
    return grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc}")


def ask(
    client: Any,
    kind: str,
    request: dict[str, Any],
    *,
    binary: bool = True,
    outputs: list[str] | None = None,
    **options: Any,
) -> Any:
    module = httpclient if kind == "http" else grpcclient
    inputs = []
    for name, array in request.items():
        item = module.InferInput(name, list(array.shape), utils.np_to_triton_dtype(array.dtype))
        if kind == "http":
            item.set_data_from_numpy(array, binary_data=binary)
        else:
            item.set_data_from_numpy(array)
        inputs.append(item)
    wanted = None
    if kind == "http" and not binary:
        names = outputs or ["vector", "score"]
        wanted = [module.InferRequestedOutput(n, binary_data=False) for n in names]
    elif outputs:
        wanted = [module.InferRequestedOutput(n) for n in outputs]
    return client.infer("shop", inputs, outputs=wanted, **options)


def agree(result: Any, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        got = result.as_numpy(name)
        assert got.shape == value.shape
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_equal_eager(server: Any, shop: Any, kind: str, binary: bool) -> None:
    client = connect(server, kind)
    for rows in (1, 3, 8, 20):
        request = shop.request(rows, seed=rows)
        result = ask(client, kind, request, binary=binary, request_id=f"r{rows}")
        agree(result, shop.answer(request))
        head = result.get_response() if kind == "http" else result.get_response(as_json=True)
        assert head["id"] == f"r{rows}"
        assert head["model_version"] == "1"
    client.close()


@pytest.mark.parametrize("kind", KINDS)
def test_one_output_and_a_version(server: Any, shop: Any, kind: str) -> None:
    client = connect(server, kind)
    request = shop.request(3)
    result = ask(client, kind, request, outputs=["score"], model_version="1")
    agree(result, {"score": shop.answer(request)["score"]})
    assert result.as_numpy("vector") is None


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_compressed_requests(server: Any, shop: Any, how: str) -> None:
    client = connect(server, "http")
    request = shop.request(8)
    agree(
        ask(client, "http", request, request_compression_algorithm=how),
        shop.answer(request),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_config_and_health(server: Any, kind: str) -> None:
    client = connect(server, kind)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("shop")
    assert client.is_model_ready("shop", "1")
    assert not client.is_model_ready("shop", "2")
    assert not client.is_model_ready("other")
    as_json = {} if kind == "http" else {"as_json": True}
    assert client.get_server_metadata(**as_json)["name"] == "recreplay"
    metadata = client.get_model_metadata("shop", **as_json)
    assert metadata["versions"] == ["1"]
    inputs = {i["name"]: (i["datatype"], [int(d) for d in i["shape"]]) for i in metadata["inputs"]}
    assert inputs["dense"] == ("FP32", [-1, 4])
    assert inputs["tag"] == ("INT32", [-1])
    config = client.get_model_config("shop", **as_json)
    config = config if kind == "http" else config["config"]
    assert config["platform"] == "recreplay"
    assert config["parameters"]["buckets"]["string_value"] == "2,8"
    assert int(config["dynamic_batching"]["max_queue_delay_microseconds"]) == 500


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_count(server: Any, shop: Any, kind: str) -> None:
    client = connect(server, kind)
    as_json = {} if kind == "http" else {"as_json": True}

    def success() -> int:
        stats = client.get_inference_statistics("shop", **as_json)["model_stats"][0]
        return int(stats["inference_stats"]["success"].get("count", 0))

    before = success()
    for _ in range(5):
        ask(client, kind, shop.request(2))
    assert success() == before + 5
    with pytest.raises(utils.InferenceServerException, match="unexpected inference output 'y'"):
        ask(client, kind, shop.request(2), outputs=["y"])
    assert success() == before + 5  # refused before it is replayed, and no answer


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_exact(server: Any, shop: Any, kind: str) -> None:
    client = connect(server, kind)
    bad, missing = ("400", "404") if kind == "http" else ("INVALID_ARGUMENT", "NOT_FOUND")
    request = shop.request(3)

    def refused(text: str, status: str, request: dict[str, Any], **options: Any) -> None:
        with pytest.raises(utils.InferenceServerException) as caught:
            ask(client, kind, request, **options)
        assert text in caught.value.message()
        assert status in str(caught.value.status())

    spoiled = {**request, "ids_0": request["ids_0"] + 50}
    refused("is out of range; table 'shelf.weight' has 50 rows", bad, spoiled)
    refused("missing tag", bad, {k: v for k, v in request.items() if k != "tag"})
    wide = {**request, "dense": request["dense"].astype("f8")}
    refused("input 'dense' has dtype float64; expected float32", bad, wide)
    refused("unexpected inference output 'x' for model 'shop'", bad, request, outputs=["x"])
    refused("version 9 of model 'shop' is not loaded", missing, request, model_version="9")
    with pytest.raises(utils.InferenceServerException) as caught:
        client.infer("nothing", [])
    assert "model 'nothing' is not loaded" in caught.value.message()
    agree(ask(client, kind, request), shop.answer(request))


def test_grpc_refuses_what_http_does(server: Any, shop: Any) -> None:
    client = connect(server, "grpc")
    inputs = []
    for name, array in shop.request(2).items():
        kind = utils.np_to_triton_dtype(array.dtype)
        inputs.append(grpcclient.InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array)
    shared = grpcclient.InferRequestedOutput("score")
    shared.set_shared_memory("region", 8)
    top = grpcclient.InferRequestedOutput("score", class_count=2)
    empty = grpcclient.InferInput("dense", [0, 2**62, 2**62], "FP32")
    empty._raw_content = b""
    for options, message in (
        ({"outputs": [top]}, "the classification extension is not supported"),
        ({"outputs": [shared]}, "the shared memory extensions are not supported"),
        ({"inputs": [empty]}, "input 'dense' has shape [0, 4611686018427387904, "),
    ):
        with pytest.raises(utils.InferenceServerException, match=f"^.*{re.escape(message)}") as got:
            client.infer("shop", **{"inputs": inputs, **options})
        assert "INVALID_ARGUMENT" in got.value.status()
    late, both = (grpcclient.service_pb2.ModelInferRequest(model_name="shop") for _ in range(2))
    late.parameters["timeout"].string_param = "5"
    both.inputs.add(name="tag", datatype="INT32", shape=[1]).contents.int_contents.append(7)
    both.raw_input_contents.append(bytes(4))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as line:
        stub = grpcclient.service_pb2_grpc.GRPCInferenceServiceStub(line)
        with pytest.raises(grpc.RpcError, match="parameter 'timeout' is '5'; expected microsecond"):
            stub.ModelInfer(late)
        with pytest.raises(
            grpc.RpcError, match="input 'tag' has contents beside raw_input_content"
        ):
            stub.ModelInfer(both)


@pytest.mark.parametrize("kind", KINDS)
def test_the_repository_api(own_server: Any, shop: Any, second: Any, kind: str) -> None:
    server = own_server()
    client = connect(server, kind)

    def index() -> dict[str, str]:
        found = client.get_model_repository_index()
        if kind == "http":
            return {m["version"]: m["state"] for m in found}
        return {m.version: m.state for m in found.models}

    request = shop.request(5)
    assert index() == {"1": "READY"}
    shutil.copytree(second[1], server.root / "shop" / "2")
    client.load_model("shop")
    assert index() == {"1": "UNAVAILABLE", "2": "READY"}
    result = ask(client, kind, request)
    agree(result, second[0].answer(request))

    bad = Path(shutil.copytree(second[1], server.root / "shop" / "3"))
    (bad / "selftest.safetensors").write_bytes(b"torn")
    with pytest.raises(utils.InferenceServerException, match="version 3 of model 'shop' was not"):
        client.load_model("shop")
    assert index() == {"1": "UNAVAILABLE", "2": "READY", "3": "UNAVAILABLE"}
    agree(ask(client, kind, request), second[0].answer(request))

    client.unload_model("shop")
    with pytest.raises(utils.InferenceServerException, match="model 'shop' is not loaded"):
        ask(client, kind, request)
    outside = r"the repository has no model|Not Found"
    with pytest.raises(utils.InferenceServerException, match=outside):
        client.load_model("../shop")


def test_streamed_requests(server: Any, shop: Any) -> None:
    from queue import SimpleQueue

    client = connect(server, "grpc")
    answers: SimpleQueue[Any] = SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    request = shop.request(3)
    for rows in (1, 2):
        inputs = []
        for name, array in shop.request(rows, seed=rows).items():
            kind = utils.np_to_triton_dtype(array.dtype)
            item = grpcclient.InferInput(name, list(array.shape), kind)
            item.set_data_from_numpy(array)
            inputs.append(item)
        client.async_stream_infer("shop", inputs)
    client.async_stream_infer("nothing", inputs)
    for rows in (1, 2):
        result, error = answers.get(timeout=10)
        assert error is None
        request = shop.request(rows, seed=rows)
        agree(result, shop.answer(request))
    assert "model 'nothing' is not loaded" in str(answers.get(timeout=10)[1])
    client.stop_stream()


def test_a_stream_that_is_left_open_does_not_keep_the_server(own_server: Any, shop: Any) -> None:
    server = own_server("--drain-seconds", "20")
    client = connect(server, "grpc")
    answers: list[Any] = []
    client.start_stream(lambda result, error: answers.append(error))
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 10
    client.stop_stream()
    assert "the server is stopping" in str(answers[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_answers_what_waits(own_server: Any, make_root: Any, shop: Any, kind: str) -> None:
    """Requests that the server has, and that wait for others to share a replay with."""
    root = make_root()
    # What replays in a moment is not queued at all, and how long that takes is measured.
    waiting = {"lanes": 2, "max_delay_us": 1_500_000, "inline_us": 0}
    (root / "shop" / "serving.json").write_text(json.dumps(waiting))
    server = own_server(root=root)
    problems: list[Any] = []
    answered: list[float] = []

    def send(number: int) -> None:
        client = connect(server, kind)
        request = shop.request(1, seed=number)
        try:
            agree(ask(client, kind, request), shop.answer(request))
            answered.append(time.monotonic())
        except Exception as error:
            problems.append(error)
        client.close()

    threads = [threading.Thread(target=send, args=(i,)) for i in range(3)]  # less than a bucket
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert answered == []
    stopped = time.monotonic()
    assert server.stop(signal.SIGTERM) == 0
    for thread in threads:
        thread.join(timeout=30)
    assert problems == []
    assert len(answered) == 3
    assert min(answered) > stopped


def test_sigterm_under_grpc_load(own_server: Any, shop: Any) -> None:
    """Until the signal every call is answered; after it a call is, or was not taken."""
    server = own_server()
    request = shop.request(5)
    expected = shop.answer(request)
    answered = [0] * 8
    refused: list[tuple[float, str, str]] = []

    def ask_on(number: int) -> None:
        client = connect(server, "grpc")
        while True:
            try:
                result = ask(client, "grpc", request)
            except utils.InferenceServerException as error:
                refused.append((time.monotonic(), str(error.status()), error.message()))
                break
            agree(result, expected)
            answered[number] += 1
        client.close()

    threads = [threading.Thread(target=ask_on, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    signalled = time.monotonic()
    code = server.stop(signal.SIGTERM)
    for thread in threads:
        thread.join(timeout=30)
    assert code == 0
    assert min(answered) > 0
    assert len(refused) == 8
    for at, status, _ in refused:
        assert at > signalled
        assert status == "StatusCode.UNAVAILABLE", refused
