"""The searches against what is known: queues with a formula, tables that are made up."""

from __future__ import annotations

import itertools
import json
import re
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from recreplay.runtime import Runtime, Serving
from recreplay.runtime.errors import RecReplayError, ReplayError
from recreplay.tools.cli import app
from recreplay.tools.load.sizes import parse_sizes
from recreplay.tools.schedule.climb import BAND, RateClimb, hill_climb, rate_grid
from recreplay.tools.schedule.latency_table import LatencyTable
from recreplay.tools.schedule.measure import HostCosts
from recreplay.tools.schedule.setting import Setting
from recreplay.tools.schedule.simulate import Simulation
from recreplay.tools.schedule.targets import SLA_MS, target_for


@given(st.floats(1, 1e4), st.floats(1.5, 100), st.integers(2, 80))
def test_the_grid_is_even_in_its_logarithm(low: float, ratio: float, steps: int) -> None:
    grid = rate_grid(low, low * ratio, steps)
    assert len(grid) == steps
    assert grid[0] == low
    assert grid[-1] == pytest.approx(low * ratio)
    np.testing.assert_allclose(np.diff(np.log(grid)), np.log(ratio) / (steps - 1), rtol=1e-6)


@given(st.floats(2, 900))
def test_the_climb_ends_where_the_target_is_crossed(knee: float) -> None:
    """A server whose p95 is its rate over the knee, in units of the target."""
    climb = RateClimb(rate_grid(1, 1000), target=1.0, start=30)
    for _ in range(200):
        climb.observe(climb.rate / knee)
    step = (1000) ** (1 / 49)
    assert knee / (1 + BAND) / step <= climb.achieved() <= knee * step


def test_in_the_dead_band_the_rate_is_held() -> None:
    climb = RateClimb(rate_grid(1, 1000), target=1.0, start=30)
    before = climb.rate
    climb.observe(0.95)
    assert climb.rate == before
    climb.observe(0.90)
    assert climb.rate > before
    climb.observe(1.01)
    assert climb.rate == before


@given(st.floats(1, 1e5), st.floats(1e-4, 1))
def test_a_window_lasts_longer_than_a_query_may(rate: float, target: float) -> None:
    climb = RateClimb((rate,), target, rate)
    assert climb.window >= 64
    assert climb.window >= 4 * target * rate
    assert climb.window <= max(64, 4 * target * rate + 1)


def test_a_target_that_never_holds_is_no_rate() -> None:
    climb = RateClimb(rate_grid(1, 1000), target=1.0, start=30)
    for _ in range(50):
        climb.observe(2.0)
    assert climb.achieved() == 0.0


@pytest.mark.parametrize(("every", "holds"), [(5, False), (3, False), (2, True), (1, True)])
def test_a_target_that_few_windows_hold_is_no_rate(every: int, holds: bool) -> None:
    """At the lowest rate, where one in so many windows is lucky."""
    climb = RateClimb((1.0, 1e9), target=1.0, start=1)
    for turn in range(60):
        climb.observe(0.95 if turn % every == 0 else 1.1)
    assert (climb.achieved() > 0) is holds


def test_hill_climb_stops_when_it_gets_worse() -> None:
    values = {1: 1.0, 2: 3.0, 3: 2.5, 4: 2.0, 5: 9.0}
    seen = []

    def value(candidate: int) -> float:
        seen.append(candidate)
        return values[candidate]

    assert hill_climb([1, 2, 3, 4, 5], value, patience=2) == (2, 3.0)
    assert seen == [1, 2, 3, 4]


FREE = HostCosts(cores=2)


def flat(seconds: float) -> LatencyTable:
    return LatencyTable((1, 1000), {1: ((seconds,), (seconds,))})


def simulate(
    setting: Setting,
    table: LatencyTable,
    target: float,
    sizes: str = "fixed:10",
    host: HostCosts = FREE,
    **more: object,
) -> float:
    climb = RateClimb(rate_grid(1, 10_000), target, start=20)
    simulation = Simulation(
        setting,
        table,
        host,
        parse_sizes(sizes),
        "exponential",
        climb,
        256,
        **more,  # type: ignore[arg-type]
    )
    return simulation.run(300)


def test_the_simulator_agrees_with_queueing_theory() -> None:
    """M/D/1: with a service of 10 ms and a p95 of 40 ms, the load is what the formula says.

    The distribution of the waiting time is Erlang's: P(W <= t) = (1 - rho) * sum over k <= t / D
    of exp(-lambda (kD - t)) (lambda (kD - t))^k / k!  (A. K. Erlang, 1909).
    """
    from math import exp, factorial

    def p_wait(rate: float, t: float, service: float) -> float:
        terms = (
            (rate * (k * service - t)) ** k / factorial(k) * exp(-rate * (k * service - t))
            for k in range(int(t / service + 1e-9) + 1)
        )
        return (1 - rate * service) * sum(terms)

    service, target = 0.01, 0.04
    exact = max(r for r in np.arange(1.0, 99.0, 0.5) if p_wait(r, target - service, service) > 0.95)
    found = simulate(Setting(1), flat(service), target)
    assert found == pytest.approx(exact, rel=0.15)


def test_more_lanes_and_batches_hold_more() -> None:
    one = simulate(Setting(1), flat(0.01), 0.05)
    assert simulate(Setting(2), flat(0.01), 0.05) > 1.7 * one
    # 25 queries of 10 rows fit a bucket of 256, and a replay takes as long as that of one.
    assert simulate(Setting(1, max_delay_us=0), flat(0.01), 0.05) > 10 * one


def test_packs_have_room_for_so_many_users() -> None:
    one = simulate(Setting(1), flat(0.01), 0.05)
    pack = Setting(1, max_delay_us=0)
    assert simulate(pack, flat(0.01), 0.05, users=1) == one
    assert 1.5 * one < simulate(pack, flat(0.01), 0.05, users=2) < 2.2 * one
    everything = simulate(pack, flat(0.01), 0.05)
    assert simulate(pack, flat(0.01), 0.05, users=256) == everything > 10 * one


def test_chunks_shorten_what_would_be_too_long() -> None:
    linear = LatencyTable((1, 1000), dict.fromkeys((1, 2), ((0.0001,), (0.1,))))
    whole = simulate(Setting(2), linear, 0.03, "fixed:250")
    assert simulate(Setting(2, chunk_rows=125), linear, 0.03, "fixed:250") > 1.5 * whole


def test_the_sender_takes_its_time_from_lanes_on_all_cores() -> None:
    """A query of 10 ms that takes the sender 5: with no core left it costs a lane 15."""
    alone = simulate(Setting(1), flat(0.01), 0.05)
    apart = simulate(Setting(1), flat(0.01), 0.05, host=HostCosts(cores=2, send=0.005, wake=0.005))
    shared = simulate(Setting(1), flat(0.01), 0.05, host=HostCosts(cores=1, send=0.005, wake=0.005))
    assert 0.8 * alone < apart <= alone
    assert shared == pytest.approx(simulate(Setting(1), flat(0.015), 0.045), rel=0.2)
    assert shared < 0.7 * apart


def test_a_late_sender_shows_in_the_latency() -> None:
    """Latency counts from when a query was due, so what oversleeps by the target holds no rate."""
    late = HostCosts(cores=2, late={0: (0.05,), 1: (0.05,)})
    assert simulate(Setting(1), flat(0.001), 0.04, host=late) == 0.0
    assert simulate(Setting(1), flat(0.001), 0.08, host=late) > 0.0


def test_each_query_of_a_pack_costs_its_lane() -> None:
    pack = Setting(1, max_delay_us=0)
    free = simulate(pack, flat(0.01), 0.05)
    assert simulate(pack, flat(0.01), 0.05, host=HostCosts(cores=2, join=0.002)) < 0.5 * free
    assert simulate(pack, flat(0.01), 0.05, host=HostCosts(cores=2, copy=0.0002)) < 0.5 * free
    alone = simulate(Setting(1), flat(0.01), 0.05)
    assert simulate(Setting(1), flat(0.01), 0.05, host=HostCosts(cores=2, copy=0.0002)) == alone


def test_an_accelerator_takes_the_large_queries() -> None:
    linear = LatencyTable((1, 1000), {1: ((1e-4,), (0.1,))})
    kairos = "kairos"
    alone = simulate(Setting(1), linear, 0.1, kairos)
    both = simulate(Setting(1, threshold=192), linear, 0.1, kairos, accelerator=flat(0.004))
    assert both > 1.5 * alone


def test_tables_interpolate_and_are_read_back(tmp_path: Path) -> None:
    table = LatencyTable((10, 20), {1: ((0.1,), (0.2,)), 2: ((0.3,), (0.4,))})
    draw = np.random.default_rng(0)
    assert table.draw(15, 1, draw) == pytest.approx(0.15)
    assert table.draw(40, 2, draw) == pytest.approx(0.8)
    assert table.draw(1, 5, draw) == pytest.approx(0.3)
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(table.to_json()))
    assert LatencyTable.read(path) == table
    path.write_text('{"rows": [1, 2], "median_ms": {"1": [1]}}')
    with pytest.raises(RecReplayError, match=r"gpu\.json is no latency table"):
        LatencyTable.read(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"rows": [], "median_ms": {"1": []}}', "rows are []; expected numbers from 1 on, in asc"),
        ('{"rows": [9, 1], "median_ms": {"1": [9, 1]}}', "rows are [9, 1]; expected numbers from"),
        ('{"rows": [0, 1], "median_ms": {"1": [9, 1]}}', "rows are [0, 1]; expected numbers from"),
        ('{"rows": [1, 9], "median_ms": {"2": [1, 2]}}', "latencies are of [2] busy; expected th"),
        ('{"rows": [1, 9], "median_ms": {"1": [1, -2]}}', "a latency is not a finite number abov"),
        ('{"rows": [1, 9], "median_ms": {"1": [1, NaN]}}', "a latency is not a finite number abo"),
    ],
)
def test_tables_that_no_time_can_be_drawn_from_are_refused(
    tmp_path: Path, text: str, why: str
) -> None:
    """A simulation would fail in the middle, or have answers before their queries."""
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(RecReplayError, match=re.escape(why)):
        LatencyTable.read(path)


def test_targets() -> None:
    assert target_for("dlrm_rmc2", None) == SLA_MS["dlrm_rmc2"] == 350
    assert target_for("mine", 7.5) == 7.5
    with pytest.raises(RecReplayError, match=r"^no target is known for 'mine' \(ncf, "):
        target_for("mine", None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well this machine is measured, and how often what it does is simulated, is no part of
    what follows."""
    monkeypatch.setattr("recreplay.tools.schedule.search.SIMULATED", 15)
    for name, times in (("_SAMPLES", 10), ("_SENT", 60), ("_TIMES", 8)):
        monkeypatch.setattr(f"recreplay.tools.schedule.measure.{name}", times)


def test_schedule_writes_what_the_runtime_takes(
    shop_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recreplay.tools.schedule.climb._TARGETS", 0)  # windows of 64
    out = tmp_path / "serving.json"
    command = ["schedule", str(shop_path), "--target-ms", "5000", "--sizes", "fixed:12", "--json"]
    command += ["--out", str(out), "--windows", "4", "--seconds", "2", "--delays", "0"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    report = data["report"]
    assert report["baseline"] == {
        "lanes": 2,
        "chunk_rows": 6,
        "max_delay_us": None,
        "threshold": None,
    }
    assert report["qps_chosen"] >= report["qps_baseline"] > 0
    assert sum(s["measured_qps"] is not None for s in report["settings"]) >= 2
    assert report["qps_limit"] >= report["qps_chosen"] / 1.2
    assert report["host"]["cores"] == 2
    assert report["host"]["send_us"] > 0
    assert [*report["host"]["late_us_p95"]] == ["0", "1", "2"]
    assert [*report["latency_table"]["median_ms"]] == ["1", "2"]
    serving = Serving.read(out)
    assert serving.deadline_us == 5_000_000
    with Runtime.load(shop_path, serving=serving) as runtime:
        assert runtime.lanes_alive() == report["chosen"]["lanes"]


@pytest.mark.parametrize("users", [1, 4])
def test_jagged_models_are_scheduled(
    feeds: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: int
) -> None:
    monkeypatch.setattr("recreplay.tools.schedule.climb._TARGETS", 0)
    out = tmp_path / "serving.json"
    command = ["schedule", str(feeds[users]), "--target-ms", "5000", "--sizes", "fixed:6", "--json"]
    command += ["--out", str(out), "--windows", "2", "--seconds", "1", "--delays", "0"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)["report"]
    assert report["baseline"]["chunk_rows"] == 3
    assert report["qps_chosen"] >= report["qps_baseline"] > 0
    delays = {s["max_delay_us"] for s in report["settings"]}
    assert delays == ({None} if users == 1 else {None, 0})
    assert ("requests of this model are not packed" in done.stderr) == (users == 1)
    Runtime.load(feeds[users], serving=Serving.read(out)).close()


def test_an_accelerator_is_planned_for_without_one(shop_path: Path, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text('{"rows": [1, 1000], "median_ms": {"1": [0.05, 0.06]}}')
    command = ["schedule", str(shop_path), "--target-ms", "5", "--sizes", "kairos", "--json"]
    command += ["--out", str(tmp_path / "s.json"), "--windows", "0"]
    done = CliRunner().invoke(app, [*command, "--accelerator", str(tmp_path / "gpu.json")])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)["report"]
    assert report["chosen"]["threshold"] is not None
    assert report["qps_chosen"] is None


@pytest.mark.parametrize(("ms", "least", "most"), [(1, 600, 1000), (50, 10, 21)])
def test_a_plan_holds_what_its_accelerator_does(
    shop_path: Path, tmp_path: Path, ms: int, least: float, most: float
) -> None:
    """It takes every query of these sizes: lanes, which hold about 350, are not asked."""
    table = {"rows": [1, 1000], "median_ms": {"1": [ms, ms]}}
    (tmp_path / "gpu.json").write_text(json.dumps(table))
    command = ["schedule", str(shop_path), "--target-ms", "200", "--sizes", "normal:800,50"]
    command += ["--out", str(tmp_path / "s.json"), "--windows", "0", "--delays", "0", "--json"]
    done = CliRunner().invoke(app, [*command, "--accelerator", str(tmp_path / "gpu.json")])
    assert done.exit_code == 0, done.output
    settings = json.loads(done.stdout)["report"]["settings"]
    held = [s["simulated_qps"] for s in settings if s["threshold"] is not None]
    assert held
    assert all(least < qps < most for qps in held), held


def test_what_time_was_too_short_for_is_not_measured(
    shop_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate of 0 would say that a setting holds nothing, and one on the way up that it holds no
    more; both would be chosen by."""
    monkeypatch.setattr("recreplay.tools.schedule.climb._TARGETS", 0)
    command = ["schedule", str(shop_path), "--target-ms", "5000", "--sizes", "fixed:12"]
    command += ["--out", str(tmp_path / "s.json"), "--delays", "0", "--windows", "100000"]
    monkeypatch.setattr("recreplay.tools.schedule.climb.WINDOW", 1000)
    done = CliRunner().invoke(app, [*command, "--seconds", "0.01", "--json"])
    assert done.exit_code == 1
    assert "0 of 100000 windows of queries were complete in 0.01 s, which measures n" in done.stderr
    assert "no window of queries was completed; nothing was written. Give more" in done.stderr
    monkeypatch.setattr("recreplay.tools.schedule.climb.WINDOW", 64)
    done = CliRunner().invoke(app, [*command, "--seconds", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert re.search(r"notice: .*: [1-9]\d* of 100000 windows of .* may be too few", done.stderr)
    settings = json.loads(done.stdout)["report"]["settings"]
    assert all(s["measured_qps"] is None or s["measured_qps"] > 0 for s in settings)


def test_schedule_ends_where_queries_fail(
    shop_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their p95 was no number, at which a rate is neither too high nor too low."""
    monkeypatch.setattr("recreplay.tools.schedule.climb._TARGETS", 0)
    submit, asked = Runtime.submit, itertools.count()

    def sometimes(self: Runtime, *given: Any, **options: Any) -> Future[Any]:
        at = next(asked) if self.serving.max_queue == 1_000_000 else 0
        if not 20 < at < 200 or at % 4:  # of the first setting, once it is warm
            return submit(self, *given, **options)
        failed: Future[Any] = Future()
        failed.set_exception(ReplayError("the replay failed"))
        return failed

    command = ["schedule", str(shop_path), "--target-ms", "5000", "--sizes", "fixed:12"]
    command += ["--out", str(tmp_path / "s.json"), "--windows", "4", "--delays", "0"]
    monkeypatch.setattr(Runtime, "submit", sometimes)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "error: the replay failed"
    assert list(tmp_path.iterdir()) == []


NEVER = r"^error: no setting holds p95 <= 0\.01 ms: the lowest p95 that was {} is [\d.e+]+ ms, at "


@pytest.mark.parametrize(("windows", "how"), [("0", "simulated"), ("1", "measured")])
def test_a_target_that_no_setting_holds_writes_nothing(
    shop_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: str, how: str
) -> None:
    monkeypatch.setattr("recreplay.tools.schedule.climb._TARGETS", 0)
    out = tmp_path / "serving.json"
    command = ["schedule", str(shop_path), "--target-ms", "0.01", "--sizes", "fixed:12"]
    command += ["--out", str(out), "--windows", windows, "--seconds", "5", "--delays", "0"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    said = done.stderr.splitlines()[-1]
    assert re.match(NEVER.format(how), said), said
    assert "; nothing was written. Raise --target-ms, or plan for smaller --sizes" in said
    assert list(tmp_path.iterdir()) == []


def test_single_windows_that_hold_are_told_from_none(
    shop_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest p95 of all is below the target then, and would be no reason."""
    monkeypatch.setattr("recreplay.tools.schedule.climb._TARGETS", 0)
    monkeypatch.setattr(RateClimb, "achieved", lambda self: 0.0)
    command = ["schedule", str(shop_path), "--target-ms", "5000", "--sizes", "fixed:12"]
    command += ["--out", str(tmp_path / "s.json"), "--windows", "0", "--delays", "0"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: no setting holds p95 <= 5000 ms: single windows of queries did")
    assert said.endswith("Give more --windows and --seconds, or raise --target-ms")


@pytest.mark.parametrize("given", [0.0, -1.0, 0.0009, float("nan"), float("inf")])
def test_a_target_that_no_deadline_can_say_is_refused(given: float) -> None:
    with pytest.raises(RecReplayError, match=r"^--target-ms is .*; expected milliseconds, 0\.001"):
        target_for("mine", given)


def test_a_negative_number_of_windows_is_refused(shop_path: Path) -> None:
    done = CliRunner().invoke(app, ["schedule", str(shop_path), "--windows", "-1"])
    assert done.exit_code == 2
    assert "greater than or equal to 0" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--delays", "-5"], "--delays '-5': expected batching delays in microseconds separated "),
        (["--sizes", "fixed:0"], "sizes 'fixed:0': a size of 0 rows is not in the range 1 to 16"),
        (["--out", "/"], "cannot write /: it is a directory; name a file in it"),
    ],
)
def test_schedule_refuses_before_it_measures(options: list[str], message: str) -> None:
    command = ["schedule", "nothing.rr", "--target-ms", "5", *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {message}")
