from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

from recreplay.runtime import Runtime
from recreplay.runtime.errors import ParityError
from recreplay.tools.bench import eager, timed_lane
from recreplay.tools.bench.command import choose
from recreplay.tools.bench.compare import Session, largest_difference
from recreplay.tools.bench.latency import Latency
from recreplay.tools.bench.requests import COUNT
from recreplay.tools.target import load_target
from recreplay.tools.traffic import mixed_sizes, parts

Invoke = Callable[..., Result]
TINY = ("--runs", "6", "--compiler", "eager")


def test_suite_report(tmp_path: Path, invoke: Invoke) -> None:
    out = tmp_path / "results" / "bench.json"
    scale = ("--arg", "rows_scale=0.001", "--buckets", "1,3")
    result = invoke("bench", "--suite", "foundation", *TINY, *scale, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert json.loads(out.read_text()) == found
    assert found["kind"] == "recreplay-bench"
    assert {"commit", "date", "torch", "cpu", "threads", "command"} <= set(found["stamp"])
    assert [r["name"] for r in found["results"]] == ["dlrm", "streamrec"]
    for one in found["results"]:
        assert one["arguments"] == {"rows_scale": 0.001}
        assert one["capture_seconds"] > 0
        assert [b["batch"] for b in one["batches"]] == [1, 3]
        for batch in one["batches"]:
            for side in ("eager_us", "replay_us"):
                assert 0 < batch[side]["p50"] <= batch[side]["p90"] <= batch[side]["p99"]
            ratio = batch["eager_us"]["p50"] / batch["replay_us"]["p50"]
            assert batch["speedup"] == pytest.approx(ratio, rel=1e-3)
            assert batch["speedup_p25"] <= batch["speedup_p75"]
            host = batch["host"]
            assert host["run_us"]["p50"] > host["graph_us"]["p50"] > 0
            assert 0 < host["overhead_us"]["p50"] < host["run_us"]["p99"]


def test_a_users_model(model_file: Path, invoke: Invoke) -> None:
    sizes = ("--buckets", "2,8", "--batches", "2,5,20")
    result = invoke("bench", f"{model_file}:build", *TINY, *sizes)
    assert result.exit_code == 0, result.stderr
    assert "speed-up" in result.stdout
    assert "batch 5 is padded to bucket 8" in result.stderr
    assert "batch 20 is replayed in parts of 8" in result.stderr
    result = invoke("bench", f"{model_file}:build", *TINY, *sizes, "--strict")
    assert result.exit_code == 1
    assert "--strict: batch 5 is padded" in result.stderr


def test_peers_are_measured_with_the_same_notices(model_file: Path, invoke: Invoke) -> None:
    command = ("bench", f"{model_file}:build", *TINY, "--buckets", "8", "--batches", "5,20")
    result = invoke(*command, "--peers", "eager")
    assert result.exit_code == 0, result.stderr
    assert "batch 5 is padded to bucket 8" in result.stderr
    assert "batch 20 is replayed in parts of 8" in result.stderr
    result = invoke(*command, "--peers", "eager", "--strict")
    assert result.exit_code == 1
    assert "--strict: batch 5 is padded" in result.stderr


@pytest.mark.parametrize("batches", ["0", "-3", "4,0", "x"])
def test_batches_of_no_rows_are_refused(model_file: Path, invoke: Invoke, batches: str) -> None:
    result = invoke("bench", f"{model_file}:build", *TINY, "--batches", batches)
    assert result.exit_code == 1
    expected = f"error: --batches '{batches}': expected batch sizes separated by commas, each a wh"
    assert result.stderr.startswith(expected)


def test_what_is_measured() -> None:
    dlrm, streamrec = choose((), None, None, None)
    assert dlrm.buckets == streamrec.buckets == (1, 16, 64, 128)
    assert dlrm.batches == (1, 16, 128)
    assert streamrec.batches == (1, 16)
    (own,) = choose(["m.py:f"], None, "4,8", None, ["a=1"])
    assert own.batches == own.buckets == (4, 8)
    assert own.arguments == ("a=1",)
    assert len(choose(["m.py:f"], "foundation", None, "2")) == 3


def test_an_unknown_suite(invoke: Invoke) -> None:
    result = invoke("bench", "--suite", "speed")
    assert result.exit_code == 1
    assert "unknown suite 'speed'; there is foundation" in result.stderr


def test_times_are_measured_and_threads_restored(
    captured: tuple[Path, Any], model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock of our own, eager takes 30 µs and a replay 10 µs, whoever goes first."""
    now = 0

    def calls_cost(microseconds: int, call: Callable[..., Any]) -> Callable[..., Any]:
        def slowed(*args: Any) -> Any:
            nonlocal now
            now += microseconds * 1000
            return call(*args)

        return slowed

    prepare = eager.EagerModel.prepare
    monkeypatch.setattr(eager.EagerModel, "prepare", lambda s, r: calls_cost(30, prepare(s, r)))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now)
    threads = torch.get_num_threads()
    with Session(load_target(f"{model_file}:build"), captured[0]) as session:
        timed = timed_lane._timed
        monkeypatch.setattr(Runtime, "run", calls_cost(10, Runtime.run))
        monkeypatch.setattr(timed_lane, "_timed", lambda r, note: timed(calls_cost(4, r), note))
        found = session.compare(8, runs=20)
    assert found.eager == Latency(30, 30, 30, 30)
    assert found.replay == Latency(10, 10, 10, 10)
    assert found.speedup == found.speedup_p25 == found.speedup_p75 == 3
    assert found.host is not None
    assert found.host.run == Latency(14, 14, 14, 14)
    assert found.host.replay == Latency(4, 4, 4, 4)
    assert found.host.overhead == Latency(10, 10, 10, 10)
    assert found.requests == COUNT >= 16
    assert torch.get_num_threads() == threads


def test_requests_differ_and_cover_the_tables(captured: tuple[Path, Any], model_file: Path) -> None:
    with Session(load_target(f"{model_file}:build"), captured[0]) as session:
        requests = session.requests(8)
    ids = np.stack([r["ids_0"].numpy() for r in requests])
    assert len({r.tobytes() for r in ids}) == COUNT
    assert set(ids.ravel()) == set(range(50))


def test_a_wrong_replay_is_an_error(
    captured: tuple[Path, Any], model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Runtime.run

    def wrong(self: Runtime, inputs: Any) -> Any:
        scores = right(self, inputs)
        scores["output"][-1] += 0.01
        return scores

    with Session(load_target(f"{model_file}:build"), captured[0]) as session:
        monkeypatch.setattr(Runtime, "run", wrong)
        with pytest.raises(ParityError, match=r"differs from the eager model by 0\.01"):
            session.compare(2, runs=2)
    with pytest.raises(ParityError, match=r"replay gives \['a'\]"):
        largest_difference({"a": np.zeros(1)}, {"b": np.zeros(1)})


def test_ids_may_change_places_where_roundings_decide() -> None:
    want = np.arange(200).reshape(2, 100)
    pair = want.copy()
    pair[0, [4, 5]] = pair[0, [5, 4]]
    assert largest_difference({"item": pair}, {"item": want}) == 0.0
    one, three = want.copy(), want.copy()
    one[0, 99] = 777
    three[0, :3] = 777
    assert largest_difference({"item": one}, {"item": want}) == 0.0
    for wrong in (three, want[:, ::-1]):
        with pytest.raises(ParityError, match=r"^output 'item' of the replay differs from the e"):
            largest_difference({"item": wrong}, {"item": want})
    with pytest.raises(ParityError, match=r"in 1 of 8 places for a request of 8 rows"):
        largest_difference({"code": np.arange(8) // 7}, {"code": np.zeros(8, np.int64)})


def test_a_saved_program(tmp_path: Path, model_file: Path, invoke: Invoke) -> None:
    model = load_target(f"{model_file}:build").model
    assert isinstance(model, torch.nn.Module)
    example = (torch.randn(4, 3), [torch.randint(0, 50, (4, 4)) for _ in range(2)])
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0: batch}, [{0: batch}, {0: batch}])
    path = tmp_path / "my.pt2"
    torch.export.save(torch.export.export(model, example, dynamic_shapes=shapes), path)
    result = invoke("bench", path, *TINY, "--buckets", "2", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["results"][0]["name"] == "my"


def test_traffic() -> None:
    assert mixed_sizes([1, 8]) == [1, 2, 4, 7, 8, 9, 20]
    assert [(p.bucket, p.rows) for p in parts(20, [1, 8])] == [(8, 8), (8, 8), (8, 4)]
    assert [(p.bucket, p.rows) for p in parts(1, [8, 1])] == [(1, 1)]


def test_demo(tmp_path: Path, invoke: Invoke, report: Callable[..., Any]) -> None:
    tiny = ("demo", "--rows-scale", "1e-5", "--buckets", "1,4", "--runs", "5")
    out = tmp_path / "kept.rr"
    found = report(*tiny, "--compiler", "eager", "--out", out)
    assert [b["bucket"] for b in found["buckets"]] == [1, 4]
    assert found["traffic"]["largest"] == 10
    assert found["traffic"]["split_requests"] > 0
    assert (
        sum(b["traffic_padded_rows"] for b in found["buckets"]) == (found["traffic"]["padded_rows"])
    )
    assert found["traffic"]["max_abs_error"] < 1e-5
    assert out.is_dir()
    result = invoke(*tiny, "--compiler", "eager")
    assert result.exit_code == 0, result.stderr
    for words in ("padding", "speed-up", "What to try next", "recreplay doctor"):
        assert words in result.stdout
