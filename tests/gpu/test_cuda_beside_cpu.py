"""A GPU beside the CPU: funnels and one model over both; requests of several users in a replay."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recreplay.capture import Jagged, capture
from recreplay.models import rm_large, rm_small, two_tower
from recreplay.models.two_tower import TwoTower
from recreplay.runtime import Funnel, ModelRepository, Offload, Runtime, Serving, Stage
from recreplay.tools.load.queries import Queries
from recreplay.tools.load.sizes import parse_sizes

ROWS, KEEP, TOP = 96, 16, 5
SMALL = {"rows_scale": 0.0001}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    made: dict[tuple[str, str], Path] = {}

    def make(name: str, device: str) -> Path:
        if (name, device) not in made:
            out = tmp_path_factory.mktemp("funnel") / "m.rr"
            model = {"small": rm_small, "large": rm_large}[name](**SMALL)
            capture(model, out=out, buckets=[KEEP, 128], device=device, compiler="eager")
            made[name, device] = out
        return made[name, device]

    return make


@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_stages_may_be_on_any_device(
    artifact: Callable[[str, str], Path], devices: tuple[str, str]
) -> None:
    request = {k: v.numpy() for k, v in rm_small(**SMALL).example_inputs(ROWS).items()}
    found = []
    for first, last in (("cpu", "cpu"), devices):
        with (
            Runtime.load(artifact("small", first)) as small,
            Runtime.load(artifact("large", last)) as large,
            Funnel([Stage(small, KEEP), Stage(large, TOP)]) as funnel,
        ):
            found += [funnel.run(request), funnel.submit(request).result(60)]
    for ranking in found[1:]:
        np.testing.assert_array_equal(ranking.rows, found[0].rows)
        np.testing.assert_allclose(ranking.scores, found[0].scores, rtol=1e-4, atol=1e-5)


def test_a_repository_serves_stages_of_both_devices(
    artifact: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """The device that it is asked for is for stages of its kind."""
    stages = [
        {"artifact": str(artifact("small", "cpu")), "keep": KEEP},
        {"artifact": str(artifact("large", "cuda")), "keep": TOP},
    ]
    (tmp_path / "rank" / "1").mkdir(parents=True)
    (tmp_path / "rank" / "1" / "funnel.json").write_text(json.dumps({"stages": stages}))
    request = {k: v.numpy() for k, v in rm_small(**SMALL).example_inputs(ROWS).items()}
    repository = ModelRepository(tmp_path, device="cuda:0")
    assert repository.load_all() == []
    served = repository.get("rank").stages("rank")
    assert [r.manifest.device for r in served.values()] == ["cpu", "cuda"]
    _, got = repository.run("rank", request)
    repository.close()
    with (
        Runtime.load(artifact("small", "cpu")) as small,
        Runtime.load(artifact("large", "cpu")) as large,
        Funnel([Stage(small, KEEP), Stage(large, TOP)]) as funnel,
    ):
        want = funnel.run(request)
    np.testing.assert_array_equal(got["rows"], want.rows)
    np.testing.assert_allclose(got["scores"], want.scores, rtol=1e-4, atol=1e-5)


def test_large_requests_are_the_gpus(artifact: Callable[[str, str], Path]) -> None:
    model = rm_small(**SMALL)
    with (
        Runtime.load(artifact("small", "cpu")) as host,
        Runtime.load(artifact("small", "cuda")) as gpu,
    ):
        both = Offload(host, gpu, 20)
        for rows in (1, 19, 20, ROWS):
            request = {k: v.numpy() for k, v in model.example_inputs(rows).items()}
            want = host.run(request)["output"]
            for got in (both.run(request), both.submit(request).result(60)):
                np.testing.assert_allclose(got["output"], want, rtol=1e-4, atol=1e-5)
        assert gpu.stats()["requests"] == both.stats()["offloaded"] == 4
        name, (_, shape) = next(iter(both.host.weights().items()))
        both.update_weights({name: np.zeros(shape, np.float32)})
        np.testing.assert_allclose(gpu.run(request)["output"], host.run(request)["output"], 1e-4)


def test_requests_of_several_users_are_packed(tmp_path: Path) -> None:
    model = two_tower(rows_scale=0.0001, dim=8)
    out = tmp_path / "m.rr"
    capture(
        model,
        out=out,
        buckets=[8, 32],
        device="cuda",
        compiler="eager",
        user_inputs=TwoTower.user_inputs,
        users=4,
        jagged=[Jagged(values, offsets=o) for values, o in model.jagged_inputs.items()],
    )
    with Runtime.load(out, serving=Serving(max_delay_us=50_000)) as runtime:
        queries = Queries(runtime.path, runtime.manifest, parse_sizes("fixed:3"))
        requests = [queries.next() for _ in range(8)]
        wanted = [runtime.run(request)["output"] for request in requests]
        lane = runtime._lanes.take()
        futures = [runtime.submit(request) for request in requests]
        runtime._lanes.put(lane)
        for future, want in zip(futures, wanted, strict=True):
            np.testing.assert_allclose(future.result(60)["output"], want, rtol=1e-4, atol=1e-5)
        assert runtime.stats()["queue"]["packed"] >= 6
