"""The server against clients that are not well-behaved, and its end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("tritonclient.grpc")

from tritonclient import grpc as grpcclient

from recreplay.runtime import ModelRepository
from recreplay.runtime.errors import RecReplayError
from recreplay.tools.serve.run import ServerOptions, serve


def body(request: dict[str, Any], **more: Any) -> dict[str, Any]:
    types = {"float32": "FP32", "int64": "INT64", "int32": "INT32"}
    inputs = [
        {
            "name": k,
            "datatype": types[v.dtype.name],
            "shape": list(v.shape),
            "data": v.ravel().tolist(),
        }
        for k, v in request.items()
    ]
    return {"inputs": inputs, **more}


def scores(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return np.array(next(o for o in answer.json()["outputs"] if o["name"] == "score")["data"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inputs": 3}, "a request is a JSON object with a list 'inputs'"),
        ({"inputs": [{}]}, "each input is an object with a 'name'"),
        ({"datatype": "FP8"}, "input 'dense' has datatype 'FP8'; expected one of BOOL, "),
        ({"shape": [2, -1]}, "input 'dense' has shape [2, -1]; expected a list of sizes"),
        ({"shape": [3, 4]}, "input 'dense' has 8 numbers; expected 12 for shape [3, 4]"),
        ({"data": ["x"] * 8}, "input 'dense' has 'data' that are not all numbers (a null, a str"),
        ({"data": ["1"] * 8}, "input 'dense' has 'data' that are not all numbers (a null, a str"),
        ({"data": [None] * 8}, "input 'dense' has 'data' that are not all numbers (a null, a st"),
        ({"data": [1.0] * 7 + [None]}, "input 'dense' has 'data' that are not all numbers (a nu"),
        ({"data": None}, "input 'dense' has 'data' that are not all numbers (a null, a string "),
        ({"data": [[1], [2, 3]]}, "input 'dense': ValueError("),
        ({"data": [1e39] * 8}, "input 'dense' has numbers that FP32 cannot hold"),
        ({"data": [10**400] * 8}, "input 'dense' has numbers that FP32 cannot hold"),
        ({"datatype": "INT64", "data": [2**70] * 8}, "has numbers that INT64 cannot hold"),
        ({"datatype": "INT64", "data": [2**53 + 1] * 7 + [1.0]}, "not as floats, which round"),
        ({"datatype": "BOOL", "data": [2] * 8}, "has numbers that BOOL cannot hold"),
        ({"shape": [0, 2**70], "data": []}, f"input 'dense' has shape [0, {2**70}]: "),
        ({"shape": [0, 2**40, 2**40], "data": []}, "input 'dense' has shape [0, 10995116"),
        ({"id": [1]}, "'id' is [1]; expected a string"),
        ({"outputs": [{"name": "score", "parameters": {"classification": 2}}]}, "classification"),
        ({"outputs": [{"name": "score", "parameters": {"binary_data": "false"}}]}, "expected true"),
        ({"parameters": {"binary_data_size": 9}}, "has binary_data_size 9; 0 bytes are left"),
        ({"parameters": {"shared_memory_region": "a"}}, "shared memory extensions are not"),
        ({"outputs": [{"name": "y"}]}, "unexpected inference output 'y' for model 'shop'"),
    ],
)
def test_malformed_requests(server: Any, shop: Any, change: dict[str, Any], text: str) -> None:
    asked = body(shop.request(2))
    for key, value in change.items():
        if key in ("inputs", "outputs", "id"):
            asked[key] = value
        else:
            asked["inputs"][0][key] = value
    answer = httpx.post(f"{server.url}/v2/models/shop/infer", json=asked)
    assert answer.status_code == 400
    assert text in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"{}" * 10, {"Inference-Header-Content-Length": "99"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 400),
        (b"{}", {"Content-Encoding": "gzip"}, 400),
        (b"{}", {"Content-Encoding": "br"}, 415),
        (b" " * 300_000, {}, 413),
        (b"", {"Content-Length": "999999999"}, 413),
    ],
)
def test_bodies_that_cannot_be_read(
    server: Any, content: bytes, headers: dict[str, str], status: int
) -> None:
    head = "POST /v2/models/shop/infer HTTP/1.1\r\nHost: x\r\n"
    given = {"Content-Length": str(len(content)), "Connection": "close", **headers}
    head += "".join(f"{k}: {v}\r\n" for k, v in given.items()) + "\r\n"
    with socket.create_connection(("127.0.0.1", server.http), timeout=10) as line:
        line.sendall(head.encode() + content)
        answer = b"".join(iter(lambda: line.recv(65536), b"")).decode()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert '{"error":' in answer


def test_answers_are_not_held_back(server: Any, shop: Any) -> None:
    """A head and a body of an answer are two packets: a socket that waits until the first was
    acknowledged, which a client does after 40 ms, sends the second no sooner."""
    asked = json.dumps(body(shop.request(2))).encode()
    head = f"POST /v2/models/shop/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(asked)}\r\n\r\n"
    spent = []
    with socket.create_connection(("127.0.0.1", server.http), timeout=10) as line:
        for _ in range(30):
            begun = time.perf_counter()
            line.sendall(head.encode() + asked)
            got = b""
            while b"\r\n\r\n" not in got or not got.endswith(b"}"):
                got += line.recv(65536)
            spent.append(time.perf_counter() - begun)
    assert min(spent[15:]) < 0.035  # the first ones are acknowledged at once


def test_an_id_comes_back_and_null_is_none(server: Any, shop: Any) -> None:
    url = f"{server.url}/v2/models/shop/infer"
    for given, expected in (("r1", "r1"), (7, "7"), (None, None)):
        answer = httpx.post(url, json=body(shop.request(2), id=given)).json()
        assert answer.get("id") == expected


def test_a_client_that_sends_too_much_reads_why(server: Any) -> None:
    """Many times --max-body, and more than the buffers between client and server hold."""
    head = "POST /v2/models/shop/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.http), timeout=10) as line:
        line.sendall(head.encode() + b" " * 30_000_000)  # fails where the server closes too early
        answer = b"".join(iter(lambda: line.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.1 413 ")
    assert "the request has more than 200000 bytes (--max-body)" in answer


def test_a_small_body_that_unpacks_to_a_large_one(server: Any) -> None:
    import gzip

    bomb = gzip.compress(b" " * 50_000_000)
    answer = httpx.post(
        f"{server.url}/v2/models/shop/infer",
        content=bomb[:190_000],
        headers={"Content-Encoding": "gzip"},
    )
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "path",
    ["/v2/models/../../etc/passwd", "/v2/models/%2e%2e%2fshop", "/v2/models/..%2F", "/nothing"],
)
def test_paths_lead_nowhere_else(server: Any, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.http), timeout=10) as line:
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert line.recv(65536).startswith(b"HTTP/1.1 404 ")
    answer = httpx.post(f"{server.url}/v2/repository/models/..%2f..%2fetc/load")
    assert answer.status_code == 404


def test_clients_that_stall_or_leave(server: Any, shop: Any) -> None:
    request = "POST /v2/models/shop/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.http), timeout=10) as line:
            line.sendall(request.encode())  # and leaves in the middle of the body
    with socket.create_connection(("127.0.0.1", server.http), timeout=10) as line:
        line.sendall(request.encode())
        assert line.recv(65536).startswith(b"HTTP/1.1 408 ")
    head = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
    for before, answers in ((b"", b""), (head + b"\r\n", b"HTTP/1.1 200 ")):
        with socket.create_connection(("127.0.0.1", server.http), timeout=10) as line:
            line.sendall(before + head)  # and no more of it
            got = b"".join(iter(lambda: line.recv(65536), b""))
            assert got.startswith(answers)
    answer = httpx.post(f"{server.url}/v2/models/shop/infer", json=body(shop.request(2)))
    np.testing.assert_allclose(scores(answer), shop.answer(shop.request(2))["score"], 1e-4)


def test_health_has_the_bodies_of_the_protocol(server: Any) -> None:
    """KServe's client reads them; Triton's goes by the status."""
    asked = {
        "health/live": (200, {"live": True}),
        "health/ready": (200, {"live": True, "ready": True}),
        "models/shop/ready": (200, {"name": "shop", "ready": True}),
        "models/shop/versions/1/ready": (200, {"name": "shop", "ready": True}),
        "models/other/ready": (400, {"name": "other", "ready": False}),
    }
    for path, (status, expected) in asked.items():
        answer = httpx.get(f"{server.url}/v2/{path}")
        assert (answer.status_code, answer.json()) == (status, expected)
    # Its OpenAPI file has the metadata of the server below "/v2/", its text below "v2".
    assert httpx.get(f"{server.url}/v2/").json() == httpx.get(f"{server.url}/v2").json()


def test_methods_and_parameters(server: Any, shop: Any) -> None:
    assert httpx.get(f"{server.url}/v2/models/shop/infer").status_code == 405
    late = body(shop.request(2), parameters={"timeout": "soon"})
    answer = httpx.post(f"{server.url}/v2/models/shop/infer", json=late)
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "parameter 'timeout' is 'soon'; expected microseconds",
    )
    late = body(shop.request(2), parameters={"timeout": 10**400})
    answer = httpx.post(f"{server.url}/v2/models/shop/infer", json=late)
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "parameter 'timeout' is more than 9007199254740992 microseconds",
    )
    for path, asked, name in (
        ("models/shop/infer", {"parameters": {"binary_data_output": "no"}}, "binary_data_output"),
        ("repository/index", {"ready": "no"}, "ready"),
    ):
        answer = httpx.post(f"{server.url}/v2/{path}", json=body(shop.request(2)) | asked)
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            f"parameter {name!r} is 'no'; expected true or false",
        )
    answer = httpx.post(f"{server.url}/v2/repository/models/shop/load", json={"parameters": [1]})
    assert (answer.status_code, answer.json()["error"]) == (400, "'parameters' is no object")
    unnamed = body({"\ud800": shop.request(2)["dense"]})
    answer = httpx.post(f"{server.url}/v2/models/shop/infer", content=json.dumps(unnamed))
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("the name of an input is no text: surrogates")
    headers = {"Inference-Header-Content-Length": "9" * 5000}
    answer = httpx.post(f"{server.url}/v2/models/shop/infer", content="{}", headers=headers)
    assert answer.status_code == 400


def test_metrics(server: Any, shop: Any) -> None:
    for rows in (2, 20):
        httpx.post(f"{server.url}/v2/models/shop/infer", json=body(shop.request(rows)))
    text = httpx.get(f"http://127.0.0.1:{server.metrics}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    labels = '{model="shop",version="1"}'
    assert float(values[f"nv_inference_request_success_total{labels}"]) >= 2
    assert float(values[f"recreplay_split_requests_total{labels}"]) >= 1
    assert float(values[f"recreplay_lanes{labels}"]) == 2
    assert float(values[f"recreplay_graph_bytes{labels}"]) > 0
    assert float(values['recreplay_replays_total{bucket="8",model="shop",version="1"}']) >= 3
    assert any(key.startswith("nv_inference_queue_duration_us_total") for key in values)


def test_a_funnel_is_a_model(own_server: Any, make_root: Any, shop: Any) -> None:
    root = make_root()
    (root / "best" / "1").mkdir(parents=True)
    stage = {"artifact": "../../shop/1", "score": "score"}
    funnel = {"stages": [stage | {"keep": 4}, stage | {"keep": 2}]}
    (root / "best" / "1" / "funnel.json").write_text(json.dumps(funnel))
    server = own_server(root=root)
    request = shop.request(7)
    asked = body(request) | {"outputs": [{"name": "rows"}, {"name": "score"}]}
    got = httpx.post(f"{server.url}/v2/models/best/infer", json=asked).json()
    scores = shop.answer(request)["score"]
    best = np.argsort(-scores)[:2]
    assert [(o["name"], o["datatype"], o["shape"]) for o in got["outputs"]] == [
        ("rows", "INT64", [2]),
        ("score", "FP32", [2]),
    ]
    assert got["outputs"][0]["data"] == best.tolist()
    np.testing.assert_allclose(got["outputs"][1]["data"], scores[best], rtol=1e-4)
    bad = body({**request, "tag": request["tag"] + 100})
    refused = httpx.post(f"{server.url}/v2/models/best/infer", json=bad)
    assert refused.status_code == 400
    assert "input 'tag', row 0: id " in refused.json()["error"]
    assert server.stop() == 0


def test_sigterm_under_load_loses_nothing_accepted(own_server: Any, shop: Any) -> None:
    server = own_server()
    request = shop.request(5)
    expected = shop.answer(request)["score"]
    asked = json.dumps(body(request)).encode()
    wrong: list[Any] = []
    answered = [0] * 8

    def ask(number: int) -> None:
        with httpx.Client() as client:
            while True:
                try:
                    answer = client.post(f"{server.url}/v2/models/shop/infer", content=asked)
                except httpx.ConnectError:
                    return  # not accepted
                except httpx.RemoteProtocolError:
                    return  # an idle connection that the server closed: nothing was read of it
                except httpx.ReadError:
                    return
                if answer.status_code != 200:
                    wrong.append(answer.text)
                    return
                np.testing.assert_allclose(scores(answer), expected, 1e-4)
                answered[number] += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    code = server.stop(signal.SIGTERM)
    for thread in threads:
        thread.join(timeout=30)
    assert code == 0
    assert wrong == []
    assert min(answered) > 0


def test_killed_and_started_again(own_server: Any, shop: Any) -> None:
    server = own_server()
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    again = own_server(root=server.root)
    answer = httpx.post(f"{again.url}/v2/models/shop/infer", json=body(shop.request(2)))
    np.testing.assert_allclose(scores(answer), shop.answer(shop.request(2))["score"], 1e-4)


def test_a_model_that_fails_to_load_is_named(own_server: Any, make_root: Any) -> None:
    root = make_root()
    (root / "empty").mkdir()
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "manifest.json").write_text("{}")
    server = own_server(root=root)  # ready, since one model serves
    index = httpx.post(f"{server.url}/v2/repository/index").json()
    states = {m["name"]: (m["state"], m["reason"]) for m in index}
    assert states["shop"] == ("READY", "")
    assert states["empty"] == ("UNAVAILABLE", "no version on disk")
    assert states["broken"][0] == "UNAVAILABLE"
    assert "manifest.sha256" in states["broken"][1]
    assert httpx.get(f"{server.url}/v2/models/broken/ready").status_code == 400


@pytest.mark.parametrize("kind", ["http", "grpc", "metrics"])
def test_a_port_that_is_taken(server: Any, make_root: Any, kind: str) -> None:
    ports = {"http": 0, "grpc": 0, "metrics": 0, kind: getattr(server, kind)}
    options = ServerOptions(**{f"{name}_port": port for name, port in ports.items()})
    started = serve(ModelRepository(make_root()), options, str, str, asyncio.Event())
    with pytest.raises(RecReplayError) as caught:
        asyncio.run(started)
    assert str(caught.value).startswith(f"cannot listen on 127.0.0.1:{ports[kind]}: ")
    assert str(caught.value).endswith(f"; choose another by --{kind}-port, or 0 for any")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_every_interface_of_both_protocols(own_server: Any) -> None:
    server = own_server("--host", "::")
    for host in ("127.0.0.1", "[::1]"):
        assert httpx.get(f"http://{host}:{server.http}/v2/health/ready").status_code == 200
        assert httpx.get(f"http://{host}:{server.metrics}/metrics").status_code == 200
        assert grpcclient.InferenceServerClient(f"{host}:{server.grpc}").is_server_ready()
