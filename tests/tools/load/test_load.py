"""Load: what is drawn, and that latency counts from when a query was due."""

from __future__ import annotations

import asyncio
import json
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from recreplay.runtime import Runtime, Serving
from recreplay.runtime.errors import RecReplayError
from recreplay.tools.cli import app
from recreplay.tools.load.arrivals import arrival_times, check_arrivals, draw_gap
from recreplay.tools.load.coroutines import by_coroutine
from recreplay.tools.load.generator import Sender, run_load, sleep_until
from recreplay.tools.load.queries import Queries
from recreplay.tools.load.saturate import by_lanes
from recreplay.tools.load.sizes import parse_sizes


def test_exponential_gaps_are_a_poisson_process() -> None:
    times = arrival_times("exponential", 1000.0, 20.0, seed=1)
    gaps = np.diff(times)
    assert abs(len(times) - 20_000) < 600
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05


def test_poisson_gaps_are_whole_milliseconds_and_less_bursty() -> None:
    draw = np.random.default_rng(0)
    gaps = np.array([draw_gap("poisson", 100.0, draw) for _ in range(5000)])
    assert np.allclose(gaps * 1e3, np.round(gaps * 1e3))
    assert abs(gaps.mean() - 0.01) < 0.001
    assert abs(gaps.std() - np.sqrt(10) / 1e3) < 0.0005


# Figures of the published distributions, as sampled from their sources.
@pytest.mark.parametrize(
    ("text", "mean", "p50", "p95"),
    [
        ("lognormal:5.1,0.2", 166.9, 164, 228),
        ("normal:165,16", 165, 165, 191),
        ("kairos", 238.7, 177, 606),
        ("fixed:7", 7, 7, 7),
    ],
)
def test_sizes_are_those_that_were_published(text: str, mean: float, p50: int, p95: int) -> None:
    draw, sizes = np.random.default_rng(3), parse_sizes(text)
    drawn = np.array([sizes(draw) for _ in range(20_000)])
    assert drawn.min() >= 1
    assert drawn.max() <= 1024
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert np.percentile(drawn, 50) == pytest.approx(p50, rel=0.02)
    assert np.percentile(drawn, 95) == pytest.approx(p95, rel=0.03)


def test_sizes_from_a_file(tmp_path: Path) -> None:
    """Sizes that were observed are not changed, also above what the distributions draw."""
    (tmp_path / "trace.txt").write_text("3\n5\n16384\n")
    sizes = parse_sizes(f"file:{tmp_path / 'trace.txt'}")
    draw = np.random.default_rng(0)
    assert {sizes(draw) for _ in range(200)} == {3, 5, 16384}


@pytest.mark.parametrize("form", ["fixed", "file"])
@pytest.mark.parametrize("size", [0, -3, 16385, 2**70])
def test_sizes_that_no_request_has_are_refused(tmp_path: Path, form: str, size: int) -> None:
    (tmp_path / "trace.txt").write_text(f"3\n{size}\n")
    text = f"fixed:{size}" if form == "fixed" else f"file:{tmp_path / 'trace.txt'}"
    why = f"a size of {size} rows is not in the range 1 to 16384; expected fixed:N, "
    with pytest.raises(RecReplayError, match=re.escape(why)):
        parse_sizes(text)


def test_requests_above_a_thousand_rows_are_sent(shop_path: Path) -> None:
    command = ["loadgen", str(shop_path), "--rate", "40", "--seconds", "0.2", "--sizes"]
    done = CliRunner().invoke(app, [*command, "fixed:2000", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["answered"] > 0
    assert report["stats"]["rows"] == 2000 * report["answered"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "inf"], "--rate is inf; expected a finite number above 0"),
        (["--seconds", "inf"], "--seconds is inf; expected a finite number above 0"),
        (["--rate", "1e9"], "--rate 1e+09 for --seconds 10 are 1e+10 queries; at most 10,000,000"),
    ],
)
def test_a_load_without_an_end_is_refused(
    shop_path: Path, options: list[str], message: str
) -> None:
    done = CliRunner().invoke(app, ["loadgen", str(shop_path), *options])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {message}")


@pytest.mark.parametrize("command", ["loadgen", "schedule"])
@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_a_seed_that_nothing_is_drawn_from_is_refused(
    shop_path: Path, command: str, seed: str
) -> None:
    done = CliRunner().invoke(app, [command, str(shop_path), "--seed", seed])
    assert done.exit_code == 2
    assert "Invalid value for '--seed': Input should be" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "8,0"], "--rows '8,0': expected rows of a request separated by commas, each "),
        (["--rows", "20000"], "a whole number, 1 to 16384"),
        (["--lanes", "0"], "--lanes '0': expected numbers of lanes separated by commas, each a "),
        (["--delays", "-5"], "--delays '-5': expected batching delays in microseconds separated "),
        (["--seconds", "inf"], "--seconds is inf; expected a finite number"),
        (["--delays", "x"], "--delays 'x': expected batching delays in microseconds separated by"),
        (["--out", "."], "cannot write .: it is a directory; name a file in it"),
        (["--out", "/proc/no/s.json"], "cannot write /proc/no/s.json: /proc: No such file or dir"),
    ],
)
def test_saturate_refuses_before_it_measures(options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["saturate", "nothing.rr", *options])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("normal:165,-1", "both have to be finite, and the second 0 or more"),
        ("normal:nan,1", "both have to be finite"),
        ("lognormal:5.1,inf", "both have to be finite"),
        ("lognormal:5.1", "expected two numbers, got 1"),
        ("normal:1,2,3", "expected two numbers, got 3"),
    ],
)
def test_distributions_that_nothing_can_be_drawn_from_are_refused(text: str, why: str) -> None:
    with pytest.raises(RecReplayError, match=f"^sizes '{text}': {why}"):
        parse_sizes(text)


@pytest.mark.parametrize("mu", [20, 60, 1000])  # beyond 1024, beyond int64, infinite
def test_what_is_drawn_too_large_is_the_largest(mu: int) -> None:
    with np.errstate(over="ignore"):
        assert parse_sizes(f"lognormal:{mu},0.1")(np.random.default_rng(0)) == 1024


@pytest.mark.parametrize("text", ["zipf", "fixed:x", "normal:1", "file:/nowhere", "kairos:2", ""])
def test_unknown_sizes_are_refused(text: str) -> None:
    with pytest.raises(RecReplayError, match=r"; expected fixed:N, normal:MEAN,STD, lognormal"):
        parse_sizes(text)


def test_unknown_arrivals_are_refused() -> None:
    with pytest.raises(RecReplayError, match=r"^unknown arrivals 'bursts'; expected one of expon"):
        check_arrivals("bursts")


def test_a_stall_shows_in_every_query_that_was_due_meanwhile(shop_path: Path, shop: Any) -> None:
    with Runtime.load(shop_path) as runtime:
        lane = runtime._lanes.take()
        held = time.perf_counter()
        import threading

        threading.Timer(0.4, lambda: runtime._lanes.put(lane)).start()
        load = run_load(runtime, [shop.request(2)] * 20, np.arange(20) * 0.01)
        assert time.perf_counter() - held < 5
    assert load.answered == 20
    assert load.latency_ms["p50"] > 150  # due 0 to 190 ms, answered after 350 ms or more
    assert load.late_ms < 100


def test_a_generator_that_oversleeps_says_that_it_sent_late(
    shop_path: Path, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recreplay.tools.load.generator.sleep_until", lambda due: _late(due, 0.03))
    with Runtime.load(shop_path) as runtime:
        load = run_load(runtime, [shop.request(2)] * 5, np.arange(5) * 0.1)
    assert load.answered == 5
    assert load.latency_ms["p50"] > 30
    assert load.late_ms > 30


def _late(due: float, seconds: float) -> None:
    sleep_until(due)
    time.sleep(seconds)


class Clerk:
    """Answers one query after the other, each in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(1)

    def submit(self, inputs: dict[str, Any], /) -> Future[Any]:
        return self._pool.submit(time.sleep, self._seconds)


def test_a_long_queue_is_waited_for_as_long_as_it_moves() -> None:
    answered: list[float] = []
    sender = Sender(Clerk(0.1), lambda latency, error: answered.append(latency))
    for _ in range(10):
        sender.send({}, time.perf_counter())
    sender.wait(0.5)
    assert len(answered) == 10
    sender = Sender(Clerk(0.5), lambda latency, error: None)
    sender.send({}, time.perf_counter())
    with pytest.raises(RecReplayError, match=r"^none of 1 queries was answered in 0\.1 s$"):
        sender.wait(0.1)


def test_refused_and_late_queries_are_counted(shop_path: Path, shop: Any) -> None:
    serving = Serving(max_queue=2, deadline_us=1000)
    with Runtime.load(shop_path, serving=serving) as runtime:
        load = run_load(runtime, [shop.request(20)] * 400, np.zeros(400))
    assert load.refused > 0
    assert load.answered + load.refused + load.expired == 400
    assert load.failed == 0


def test_saturate_reports(shop_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    command = ["saturate", str(shop_path), "--rows", "2", "--lanes", "1,2", "--delays", "0"]
    done = CliRunner().invoke(app, [*command, "--seconds", "0.2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert [(i["rows"], i["lanes"]) for i in report["lanes"]] == [(2, 1), (2, 2)]
    assert [i["max_delay_us"] for i in report["batching"]] == [None, 0]
    ways = [i["way"] for i in report["coroutines"]]
    assert ways == [
        "run in a thread pool",
        "arun by lanes' threads",
        "arun by lanes' threads, packed",
        "arun",
    ]
    assert all(i["qps"] > 0 for i in report["lanes"] + report["batching"] + report["coroutines"])
    assert [(i["rows"], i["busy"]) for i in report["beside"]] == [(2, False), (2, True)]
    assert all(0 < i["us_p50"] <= i["us_p95"] for i in report["beside"])


class SlowRuntime:
    """Whose requests take longer than there is time left for the last of them."""

    def __enter__(self) -> SlowRuntime:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.2)
        return inputs

    async def arun(self, inputs: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.2)
        return inputs


def test_saturate_counts_the_time_of_what_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five requests a second for each lane, and for each of 64 coroutines."""
    monkeypatch.setattr("recreplay.tools.load.coroutines.LONELY", 1)
    monkeypatch.setattr(Runtime, "load", lambda *given, **options: SlowRuntime())
    asked: dict[int, list[dict[str, Any]]] = {1: [{}]}
    lanes = by_lanes(Path("slow.rr"), asked, [1, 2], 0.5, print)
    assert [point["qps"] for point in lanes] == pytest.approx([5, 10], rel=0.1)
    found = by_coroutine(Path("slow.rr"), asked, False, 0.5, print)
    assert {"arun", "arun by lanes' threads"} < {point["way"] for point in found}
    asleep = [point["qps"] for point in found if point["way"] != "run in a thread pool"]
    assert asleep == pytest.approx([320] * 2, rel=0.15)


def test_saturate_fails_where_a_request_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not count what the threads had done until then."""

    class Broken(SlowRuntime):
        def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
            raise RecReplayError("the replay failed")

    monkeypatch.setattr(Runtime, "load", lambda *given, **options: Broken())
    with pytest.raises(RecReplayError, match=r"^the replay failed$"):
        by_lanes(Path("broken.rr"), {1: [{}]}, [2], 30, print)


def test_loadgen_reports(shop_path: Path, tmp_path: Path) -> None:
    (tmp_path / "serving.json").write_text('{"lanes": 2, "max_delay_us": 0}')
    command = ["loadgen", str(shop_path), "--rate", "100", "--seconds", "0.5"]
    command += ["--sizes", "fixed:3", "--serving", str(tmp_path / "serving.json")]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["answered"] == report["offered"] > 20
    assert report["serving"]["lanes"] == 2
    assert report["latency_ms"]["p50"] <= report["latency_ms"]["p99"]
    done = CliRunner().invoke(app, command)
    assert "latency from due" in done.stdout


@pytest.mark.parametrize("users", [1, 4])
def test_queries_are_the_candidates_of_one_user(feeds: dict[int, Path], users: int) -> None:
    with Runtime.load(feeds[users]) as runtime:
        queries = Queries(runtime.path, runtime.manifest, parse_sizes("fixed:5"))
        found = [queries.next() for _ in range(60)]
        for query in found:
            assert len(query["item"]) == len(query["tag_offsets"]) - 1 == 5
            assert len(query["user"]) == len(query["seen_offsets"]) - 1 == 1
            assert runtime.run(query)["output"].shape == (5,)
    assert len({query["user"][0] for query in found}) > 10
    assert len({len(query["tags"]) for query in found}) > 1
    assert len({len(query["seen"]) for query in found}) > 1


def test_jagged_queries_are_sent_packed_and_cut(feeds: dict[int, Path], tmp_path: Path) -> None:
    (tmp_path / "serving.json").write_text('{"max_delay_us": 2000, "chunk_rows": 3}')
    command = ["loadgen", str(feeds[4]), "--rate", "200", "--seconds", "0.5", "--json"]
    command += ["--sizes", "normal:3,2", "--serving", str(tmp_path / "serving.json")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["answered"] == report["offered"] > 40
    assert report["stats"]["queue"]["packed"] > 0
    assert report["stats"]["queue"]["cut"] > 0


@pytest.mark.parametrize(("users", "delays"), [(1, [None]), (4, [None, 0])])
def test_saturate_packs_where_a_replay_has_room_for_users(
    feeds: dict[int, Path], users: int, delays: list[int | None]
) -> None:
    command = ["saturate", str(feeds[users]), "--rows", "2", "--lanes", "1", "--delays", "0"]
    done = CliRunner().invoke(app, [*command, "--seconds", "0.1", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [i["max_delay_us"] for i in report["batching"]] == delays
    assert len(report["coroutines"]) == 2 + len(delays)
    assert ("requests of this model are not packed" in done.stderr) == (users == 1)
