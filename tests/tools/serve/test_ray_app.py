"""The Ray Serve application on a local cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'recreplay[ray]')")
serve = pytest.importorskip("ray.serve", reason="ray serve is not installed")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def deployed(shop_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import socket

    from recreplay.tools.serve.ray_app import app

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serving = tmp_path_factory.mktemp("ray") / "serving.json"
    serving.write_text('{"lanes": 1, "max_delay_us": 0}')
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments = {"artifact": str(shop_path), "serving": str(serving), "name": "shop"}
    handle = serve.run(app({**arguments, "min_replicas": "2", "max_replicas": "2"}))
    yield handle, f"http://127.0.0.1:{port}/"
    serve.shutdown()
    ray.shutdown()


def test_replicas_answer_as_eager_does(deployed: Any, shop: Any) -> None:
    handle, url = deployed
    answers = []
    for rows in (1, 3, 20):
        request = shop.request(rows, seed=rows)
        answers.append((handle.infer.remote(request), shop.answer(request)))
    for future, expected in answers:
        got = future.result(timeout_s=60)
        np.testing.assert_allclose(got["score"], expected["score"], rtol=1e-4, atol=1e-5)
    request = shop.request(3)
    types = {"float32": "FP32", "int64": "INT64", "int32": "INT32"}
    inputs = [
        {"name": k, "datatype": types[v.dtype.name], "shape": list(v.shape), "data": v.tolist()}
        for k, v in request.items()
    ]
    answer = httpx.post(url, json={"inputs": inputs}, timeout=60)
    assert answer.status_code == 200, answer.text
    outputs = {o["name"]: o["data"] for o in answer.json()["outputs"]}
    np.testing.assert_allclose(outputs["score"], shop.answer(request)["score"], 1e-4, 1e-5)
    bad = httpx.post(url, json={"inputs": inputs[1:]}, timeout=60)
    assert (bad.status_code, "missing dense" in bad.json()["error"]) == (400, True)
    headers = {"Inference-Header-Content-Length": "soon"}
    bad = httpx.post(url, content=b"{}", headers=headers, timeout=60)
    assert (bad.status_code, "expected a number of bytes" in bad.json()["error"]) == (400, True)
    assert httpx.get(url).json()["name"] == "shop"


def test_an_output_that_there_is_not_is_refused_before_a_replay(
    shop_path: Path, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.requests import Request

    from recreplay.runtime import Runtime
    from recreplay.tools.serve.ray_app import Replica

    replica = Replica(str(shop_path), "shop", {})
    monkeypatch.setattr(Runtime, "arun", None)  # which would be called in vain
    inputs = [
        {"name": "dense", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}
        for x in [shop.request(2)["dense"]]
    ]
    body = json.dumps({"inputs": inputs, "outputs": [{"name": "nope"}]}).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    request = Request({"type": "http", "method": "POST", "headers": [], "path": "/"}, receive)
    answer = asyncio.run(replica(request))
    assert answer.status_code == 400
    assert b"unexpected inference output 'nope' for model 'shop'" in answer.body


def test_arguments_are_checked() -> None:
    from recreplay.runtime.errors import RecReplayError
    from recreplay.tools.serve.ray_app import app

    with pytest.raises(RecReplayError, match=r"^artifact=PATH is missing; arguments are artifact"):
        app({})
    with pytest.raises(RecReplayError, match=r"^unknown replicas; arguments are artifact"):
        app({"artifact": "x", "replicas": "2"})
