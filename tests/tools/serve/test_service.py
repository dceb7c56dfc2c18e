"""What HTTP, gRPC and /metrics share, without a server: loading, counters, the end."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("starlette")
pytest.importorskip("tritonclient.grpc")

from prometheus_client import CollectorRegistry, generate_latest

from recreplay.runtime import ModelRepository
from recreplay.runtime.errors import RepositoryError
from recreplay.tools.cli import app
from recreplay.tools.serve import describe
from recreplay.tools.serve.http_app import build_app
from recreplay.tools.serve.metrics import ServiceCollector
from recreplay.tools.serve.run import Ports, ServerOptions, serve
from recreplay.tools.serve.service import Service


@pytest.fixture
def root(shop_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(shop_path, tmp_path / "models" / "shop" / "1")
    return tmp_path / "models"


def metrics(service: Service) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service))
    lines = generate_latest(registry).decode().splitlines()
    found = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in found}


REPLAYS = 'nv_inference_exec_count_total{model="shop",version="1"}'
LABELS = '{bucket="8",model="best/1-1",version="1"}'
LANES = 'recreplay_lanes{model="shop",version="1"}'


def test_metrics_ask_no_disk(root: Path, shop: Any) -> None:
    service = Service(ModelRepository(root))
    assert service.start() == []
    root.rename(root.with_name("away"))
    asyncio.run(service.infer("shop", None, shop.request(2), None))
    found = metrics(service)
    assert (found[REPLAYS], found[LANES]) == (1, 1)
    service.repository.close()


def test_requests_do_not_wait_while_the_storage_is_looked_into(
    root: Path, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(ModelRepository(root))
    service.start()
    looking, answered = threading.Event(), threading.Event()
    listed = Path.iterdir

    def iterdir(path: Path) -> Any:
        looking.set()
        answered.wait(3)
        return listed(path)

    async def main() -> None:
        transport = httpx.ASGITransport(build_app(service, 1000, 5))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            index = asyncio.create_task(client.post("/v2/repository/index"))
            assert await asyncio.to_thread(looking.wait, 10)
            await service.infer("shop", None, shop.request(2), None)
            (counted,) = (await client.get("/v2/models/stats")).json()["model_stats"]
            assert (counted["name"], counted["inference_count"]) == ("shop", 2)
            assert not index.done()
            answered.set()
            assert (await index).json()[0]["state"] == "READY"

    monkeypatch.setattr(Path, "iterdir", iterdir)
    asyncio.run(main())
    service.repository.close()


def test_what_is_laid_out_wrongly_is_told(root: Path) -> None:
    shutil.copytree(root / "shop", root / "my shop")
    shutil.copytree(root / "shop" / "1", root / "flat")
    service = Service(ModelRepository(root))
    flat, misnamed = service.start()
    assert f"{root / 'flat'}/VERSION, where VERSION is a whole number" in str(flat)
    assert str(misnamed).startswith(f"{root / 'my shop'} is not served: expected the name of a mo")
    assert service.is_ready()
    service.repository.close()
    with pytest.raises(RepositoryError, match=r"flat is an artifact; a repository is a directory"):
        ModelRepository(root / "flat")


def test_counters_go_on_where_a_version_is_loaded_again(root: Path, shop: Any) -> None:
    service = Service(ModelRepository(root))
    service.start()
    asyncio.run(service.infer("shop", None, shop.request(2), None))
    before = metrics(service)[REPLAYS]
    service.load("shop")
    assert metrics(service)[REPLAYS] == before == 1
    asyncio.run(service.infer("shop", None, shop.request(2), None))
    assert metrics(service)[REPLAYS] == 2
    assert service.statistics("shop", "1")["execution_count"] == 2
    service.unload("shop")
    found = metrics(service)
    assert found[REPLAYS] == 2
    assert LANES not in found
    service.repository.close()


def test_statistics_of_a_version_that_is_about_to_take_over(root: Path, shop: Any) -> None:
    service = Service(ModelRepository(root))
    service.start()
    shutil.copytree(root / "shop" / "1", root / "shop" / "2")
    service.repository.load("shop")  # as `Service.load` does before the old one is closed
    asyncio.run(service.infer("shop", None, shop.request(2), None))
    assert service.statistics("shop", None)["execution_count"] == 1
    service.repository.close()


def test_a_request_counts_for_the_version_that_answers_it(
    root: Path, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(ModelRepository(root))
    service.start()
    shutil.copytree(root / "shop" / "1", root / "shop" / "2")
    arun = service.repository.arun

    async def after_an_exchange(*given: Any, **named: Any) -> Any:
        service.load("shop")
        return await arun(*given, **named)

    monkeypatch.setattr(service.repository, "arun", after_an_exchange)
    for _ in range(2):
        assert asyncio.run(service.infer("shop", None, shop.request(2), None))[0] == "2"
    found = {version: counts.success for (_, version), counts in service.counts().items()}
    assert found == {"1": 0, "2": 2}
    service.repository.close()


def funnel_beside(root: Path) -> None:
    """Of the one model twice."""
    folder = root / "best" / "1"
    folder.mkdir(parents=True)
    stage = {"artifact": "../../shop/1", "score": "score"}
    stages = [stage | {"keep": 3}, stage | {"keep": 2, "serving": {"lanes": 2, "max_delay_us": 9}}]
    (folder / "funnel.json").write_text(json.dumps({"stages": stages}))


def test_a_funnel_is_counted_by_stage(root: Path, shop: Any) -> None:
    funnel_beside(root)
    service = Service(ModelRepository(root))
    assert service.start() == []
    request = shop.request(5)
    version, outputs = asyncio.run(service.infer("best", None, request, None))
    best = np.argsort(-shop.answer(request)["score"])[:2]
    assert version == "1"
    np.testing.assert_array_equal(outputs["rows"], best)
    np.testing.assert_allclose(outputs["vector"], shop.answer(request)["vector"][best], rtol=1e-4)
    found = metrics(service)
    for stage, rows, lanes in (("1-1", 5, 1), ("2-1", 3, 2)):
        labels = f'{{model="best/{stage}",version="1"}}'
        assert found[f"nv_inference_count_total{labels}"] == rows
        assert found[f"recreplay_lanes{labels}"] == lanes
    assert found['nv_inference_request_success_total{model="best",version="1"}'] == 1
    told = service.statistics("best", None)
    assert (told["execution_count"], told["inference_count"]) == (2, 8)
    service.unload("best")
    assert (
        found["recreplay_replays_total" + LABELS]
        == metrics(service)["recreplay_replays_total" + LABELS]
    )
    service.repository.close()


def test_a_funnel_is_described(root: Path, shop: Any) -> None:
    funnel_beside(root)
    repository = ModelRepository(root)
    alone, served = repository.load("shop"), repository.load("best")
    inputs = describe.model("shop", alone)["inputs"]
    said = describe.model("best", served)
    assert said["inputs"] == inputs
    assert said["outputs"] == [
        {"name": "rows", "datatype": "INT64", "shape": [-1]},
        {"name": "scores", "datatype": "FP32", "shape": [-1]},
        {"name": "vector", "datatype": "FP32", "shape": [-1, 5]},
        {"name": "score", "datatype": "FP32", "shape": [-1]},
    ]
    config = describe.config("best", served)
    assert config["instance_group"] == [
        {"name": "best/1-1", "kind": "KIND_CPU", "count": 1},
        {"name": "best/2-1", "kind": "KIND_CPU", "count": 2},
    ]
    assert config["parameters"]["2-1.buckets"] == {"string_value": "2,8"}
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 9}
    repository.close()


@pytest.mark.parametrize(
    ("command", "module", "missing"),
    [
        (["serve"], "recreplay.tools.serve.run", "uvicorn"),
        (["schedule"], "recreplay.tools.schedule.search", "simpy"),
    ],
)
def test_only_what_is_not_installed_is_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], module: str, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # stands for a module of ours that is broken
    done = CliRunner().invoke(app, [*command, str(tmp_path)])
    assert isinstance(done.exception, ImportError)
    for name in (module, "recreplay.tools.schedule.simulate"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    done = CliRunner().invoke(app, [*command, str(tmp_path)])
    assert done.exit_code == 1
    assert f"pip install 'recreplay[{command[0]}]'" in done.stderr


def test_a_stop_while_models_load_loads_no_further_one(root: Path) -> None:
    shutil.copytree(root / "shop", root / "two")
    repository = ModelRepository(root)
    asked, go = threading.Event(), threading.Event()
    loaded = []
    load = repository.load

    def slow(name: str, version: str | None = None) -> Any:
        asked.set()
        assert go.wait(30)
        loaded.append(name)
        return load(name, version)

    repository.load = slow  # type: ignore[method-assign]
    said: list[str] = []

    async def main() -> None:
        stop = asyncio.Event()
        options = ServerOptions(http_port=0, grpc_port=0, metrics_port=0, drain_seconds=1)
        task = asyncio.create_task(serve(repository, options, said.append, _nothing, stop))
        await asyncio.to_thread(asked.wait, 30)
        stop.set()
        await asyncio.sleep(0.05)
        assert said == ["stopping: answering what was accepted"]  # at once
        go.set()
        await task

    asyncio.run(main())
    assert loaded == ["shop"]
    assert said == ["stopping: answering what was accepted"]


def test_who_is_not_answered_in_time_is_told_of_the_stop(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> bytes:
        stop, ports = asyncio.Event(), list[Ports]()
        options = ServerOptions(http_port=0, grpc_port=0, metrics_port=0, drain_seconds=0)
        repository = ModelRepository(root)
        task = asyncio.create_task(serve(repository, options, str, ports.append, stop))
        while not ports:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[0].http)
        path = b"/v2/repository/models/shop/load"
        writer.write(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        await asyncio.sleep(0.2)
        stop.set()
        answer = await reader.read()
        await task
        return answer

    answer = asyncio.run(main())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b'{"error":"the server is stopping"}')
    assert not [record for record in caplog.records if record.exc_info]  # a traceback each


def _nothing(_: Ports) -> None:
    pass


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--grpc-port", "99999"], 2, "Invalid value for '--grpc-port'"),
        (["--http-port", "99999"], 2, "Invalid value for '--http-port'"),
        (["--http-port", "-1"], 2, "Invalid value for '--http-port'"),
        (["--metrics-port", "65536"], 2, "Invalid value for '--metrics-port'"),
        (["--max-body", "0"], 2, "Invalid value for '--max-body'"),
        (["--read-seconds", "0"], 2, "Invalid value for '--read-seconds'"),
        (["--drain-seconds", "-1"], 2, "Invalid value for '--drain-seconds'"),
        (["--drain-seconds", "inf"], 1, "error: --drain-seconds is inf; expected a finite"),
        (["--check", "wrong"], 1, "error: --check 'wrong'; expected one of error, clamp, off"),
    ],
)
def test_options_that_no_server_can_have(
    tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    done = CliRunner().invoke(app, ["serve", str(tmp_path), *options])
    assert done.exit_code == code
    assert message in done.stderr
