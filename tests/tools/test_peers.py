"""`recreplay bench --peers`: who takes part, what is said of it, and that wrong answers do not."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

from recreplay.capture.assign import assign
from recreplay.capture.features import to_dag
from recreplay.capture.specialise import specialise
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import RecReplayError
from recreplay.tools.bench import against_peers, rounds
from recreplay.tools.bench.cold import evictor, largest_cache
from recreplay.tools.bench.floor import Floor, measure_floor
from recreplay.tools.bench.peers import PEERS, find_peers
from recreplay.tools.bench.peers.base import Array, Arrays, Call, Subject
from recreplay.tools.bench.peers.contender import Contender, LocalContender
from recreplay.tools.bench.peers.multi_stream import issue_order
from recreplay.tools.bench.peers.own_process import ProcessContender
from recreplay.tools.bench.requests import as_arrays, random_requests
from recreplay.tools.bench.rounds import Spread, play
from recreplay.tools.bench.suites import SUITES, find_suite
from recreplay.tools.target import load_target

Invoke = Callable[..., Result]
TINY = ("--runs", "4", "--compiler", "eager", "--buckets", "1,4")


@pytest.fixture
def subject(captured: tuple[Path, Any], model_file: Path, tmp_path: Path) -> Subject:
    return Subject(load_target(f"{model_file}:build"), captured[0], "cpu", tmp_path)


@pytest.fixture
def requests(subject: Subject) -> list[Arrays]:
    tensors = random_requests(subject.target, open_artifact(subject.artifact), 4, 3, 1)
    return [as_arrays(request) for request in tensors]


def test_report(model_file: Path, tmp_path: Path, invoke: Invoke) -> None:
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "peers.json", tmp_path / "plots" / "peers.svg"
    result = invoke(
        "bench", f"{model_file}:build", *TINY, "--peers", "eager", "--out", out, "--plot", plot,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert json.loads(out.read_text()) == found
    assert found["kind"] == "recreplay-bench-peers"
    assert {"commit", "date", "torch", "cpu"} <= set(found["stamp"])
    assert [p["name"] for p in found["peers"]] == ["eager", "ours"]
    assert found["calls_of_a_turn"] == rounds.TURN
    (model,) = found["results"]
    assert model["absent"] == {}
    assert [b["batch"] for b in model["batches"]] == [1, 4]
    for batch in model["batches"]:
        eager, ours = batch["contenders"]
        assert (eager["name"], ours["name"]) == ("eager", "ours")
        assert ours["to_ours"] == {"ratio": 1.0, "p25": 1.0, "p75": 1.0}
        ratio = eager["latency_us"]["p50"] / ours["latency_us"]["p50"]
        assert eager["to_ours"]["ratio"] == pytest.approx(ratio, rel=1e-2)
        assert eager["to_ours"]["p25"] <= eager["to_ours"]["p75"]
        assert ours["max_abs_error"] < 1e-5
        assert batch["best_peer"] == "eager"
        assert batch["ours_to_best_peer"]["ratio"] == pytest.approx(1 / ratio, rel=1e-2)
        # two tables of width 8 x 4 ids, 3 dense values, 20 weights of the layer, one score
        rows = batch["batch"]
        assert batch["floor"]["bytes"] == rows * (2 * 4 * (8 * 4 + 8) + 3 * 4 + 4) + 20 * 4
        ours_us = ours["latency_us"]["p50"]
        assert batch["floor"]["ours_to_floor"] == pytest.approx(
            ours_us / batch["floor"]["us"], rel=1e-2
        )
    picture = plot.read_text()
    assert picture.startswith("<?xml")
    for words in ("batch 1", "batch 4", "from floor to ours"):
        assert words in picture


def test_models_of_one_name_are_told_apart(
    model_file: Path, tmp_path: Path, invoke: Invoke
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "other.py").write_text(model_file.read_text())
    models = [f"{model_file}:build", f"{tmp_path / 'other.py'}:build"]
    plot = tmp_path / "peers.svg"
    size = ("--batches", "4", "--peers", "eager", "--plot", plot, "--json")
    result = invoke("bench", *models, *TINY, *size)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["processes"] == 2
    assert [r["name"] for r in found["results"]] == models
    for measured in found["results"]:
        assert {c["name"] for c in measured["batches"][0]["contenders"]} == {"eager", "ours"}
    lines = plot.read_text()  # which has each text as a comment, since letters are drawn
    assert all(f"<!-- {model} -->" in lines for model in models)


def test_tables_and_who_is_absent(model_file: Path, invoke: Invoke) -> None:
    peers = ("--peers", "cuda_graph,multi_stream,reduce_overhead", "--cold")
    result = invoke("bench", f"{model_file}:build", *TINY, "--batches", "4", *peers)
    assert result.exit_code == 0, result.stderr
    for words in (
        "over ours",
        "ours takes",
        "the best peer",
        "of the floor",
        "Caches emptied before every call",
        "cuda_graph: absent: records CUDA graphs or uses CUDA streams",
        "multi_stream: absent:",
        "reduce_overhead: absent: records CUDA graphs; on the CPU it is",
    ):
        assert words in result.stdout


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_gather"])
def test_onnx_runtime_answers_as_eager(name: str, subject: Subject, requests: list[Arrays]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    same_answers(name, subject, requests)


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["compile", "aotinductor_static"])
def test_compilers_answer_as_eager(name: str, subject: Subject, requests: list[Arrays]) -> None:
    if PEERS[name].absent("cpu") is not None:
        pytest.skip(str(PEERS[name].absent("cpu")))
    same_answers(name, subject, requests)


@pytest.mark.inductor
@pytest.mark.parametrize("lengths", ["50.0,10.0,3.0", "3.0,0.4,0.4"])
def test_jagged_models_have_one_compiled_function_for_any_number_of_values(
    invoke: Invoke, lengths: str
) -> None:
    """Of the second, many requests have none at all."""
    if PEERS["compile"].absent("cpu") is not None:
        pytest.skip(str(PEERS["compile"].absent("cpu")))
    sizes = (
        "--arg",
        "rows_scale=0.0001",
        "--arg",
        "dim=8",
        "--arg",
        f"lengths={lengths}",
        "--buckets",
        "1,16",
        "--batches",
        "1,16",
    )
    peers = ("--peers", "compile,aotinductor_static", "--runs", "18", "--compiler", "eager")
    result = invoke("bench", "recreplay.models:two_tower", *sizes, *peers, "--json")
    assert result.exit_code == 0, result.stderr
    (model,) = json.loads(result.stdout)["results"]
    for batch in model["batches"]:
        assert [c["name"] for c in batch["contenders"]] == ["eager", "compile", "ours"]
    why = "RuntimeError: a static package has one number of values, and watched has many"
    assert model["absent"] == {f"aotinductor_static at batch {rows}": why for rows in (1, 16)}


def test_operators_of_streams_are_issued_in_an_order_that_works(
    subject: Subject, requests: list[Arrays]
) -> None:
    """One after the other they give eager's answer; each comes after those that it waits for."""
    program = specialise(subject.ingested, 4)
    dag, nodes = to_dag(program)
    order = issue_order(program, assign(dag, "feature", 2), nodes)
    assert {stream for _, stream, _, _ in order} == {0, 1}
    state = subject.exported.state_dict
    values: dict[Any, Any] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        kind, _, name = str(node.target).partition(":")
        found = {"weight": state, "const": program.constants}.get(kind)
        values[node] = torch.from_numpy(requests[0][name]) if found is None else found[name]
    awaited = {node for node, _, _, is_awaited in order if is_awaited}
    for node, _, waits, _ in order:
        assert all(other in values and other in awaited for other in waits)
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    eager = LocalContender(PEERS["eager"], subject)
    eager.prepare(requests)
    (output,) = program.outputs.values()
    np.testing.assert_allclose(
        values[output].detach().numpy(), eager.answer(0)["output"], rtol=1e-5
    )


def test_a_process_of_its_own(subject: Subject, requests: list[Arrays]) -> None:
    contender = ProcessContender("eager", subject)
    check_contender(contender, subject, requests)
    with pytest.raises(RecReplayError, match=r"IndexError: list index out of range"):
        contender.time(3)
    contender.close()
    with pytest.raises(RecReplayError, match=r"the process of peer 'eager' ended during time"):
        contender.time(0)


def same_answers(name: str, subject: Subject, requests: list[Arrays]) -> None:
    contender = LocalContender(PEERS[name], subject)
    check_contender(contender, subject, requests)
    contender.close()


def check_contender(contender: Contender, subject: Subject, requests: list[Arrays]) -> None:
    eager = LocalContender(PEERS["eager"], subject)
    eager.prepare(requests)
    contender.prepare(requests)
    assert contender.time(0) > 0
    for i in range(3):
        want, got = eager.answer(i), contender.answer(i)
        assert got.keys() == want.keys()
        for key, array in want.items():
            np.testing.assert_allclose(got[key], array, rtol=1e-4, atol=1e-5)


class Odd:
    """A peer that cannot be loaded, or that answers wrongly."""

    about = "made up"
    records_graphs = False

    def __init__(self, name: str) -> None:
        self.name = name

    def absent(self, device: str) -> str | None:
        return None

    def load(self, subject: Subject) -> Odd:
        if self.name == "broken":
            raise ValueError("no such operator:\n  aten::sparkle")
        return self

    def prepare(self, example: Mapping[str, Array]) -> Call:
        return lambda request: {"output": np.zeros((len(request["dense"]), 1), np.float32)}

    def close(self) -> None:
        pass


def test_peers_that_fail_are_absent_with_the_reason(
    model_file: Path, report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = [PEERS["eager"], Odd("broken"), Odd("wrong"), PEERS["ours"]]
    monkeypatch.setattr(against_peers, "find_peers", lambda names: everyone)
    found = report("bench", f"{model_file}:build", *TINY, "--batches", "4", "--peers", "all")
    (model,) = found["results"]
    assert [c["name"] for c in model["batches"][0]["contenders"]] == ["eager", "ours"]
    assert model["absent"]["broken"] == "ValueError: no such operator: aten::sparkle"
    assert "wrong answers: output 'output' of the replay" in model["absent"]["wrong at batch 4"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("one\n\ntwo\nthree\nfour", "one two three"),
        ("no\n$ g++ x\n/tmp/a/x.cpp:3: error: 'y' is not", "no x.cpp:3: error: 'y' is not"),
        ("g++ /tmp/a/b.cpp -o '/tmp/a/b'; a/b", "g++ b.cpp -o 'b'; a/b"),
    ],
)
def test_a_reason_is_short_and_names_no_folder(said: str, reason: str) -> None:
    assert against_peers._reason(ValueError(said)) == f"ValueError: {reason}"


class Clocked:
    """A contender that takes as long as it says, and remembers who was asked when."""

    def __init__(self, name: str, taken: Iterator[int], log: list[tuple[str, int]]) -> None:
        self.name, self._taken, self._log = name, taken, log

    def prepare(self, requests: Any) -> None: ...

    def time(self, index: int) -> int:
        self._log.append((self.name, index))
        return next(self._taken)

    def answer(self, index: int) -> Arrays:
        return {}

    def close(self) -> None: ...


def test_who_begins_changes_and_nobody_meets_anothers_request() -> None:
    log: list[tuple[str, int]] = []
    ring = [Clocked(n, iter(range(1000)), log) for n in "abc"]
    evicted: list[int] = []
    found = play(ring, 17, 6, lambda: evicted.append(len(log)))
    assert ["".join(n for n, _ in log[i : i + 3]) for i in range(0, 18, 3)] == (
        ["abc", "bca", "cab"] * 2
    )
    assert evicted == list(range(18))  # before each call
    for i in range(0, 18, 3):
        assert len({index for _, index in log[i : i + 3]}) == 3
    assert found == {n: [0, 1, 2, 3, 4, 5] for n in "abc"}


@pytest.mark.parametrize("count", [2, 3, 4, 6, 11])
def test_nobody_meets_the_requests_of_who_was_before(count: int) -> None:
    log: list[tuple[str, int]] = []
    play([Clocked(n, itertools.count(), log) for n in "abcdefghijk"[:count]], 17, 400)
    turns = [log[i : i + rounds.TURN] for i in range(0, len(log), rounds.TURN)]
    for before, after in pairwise(turns):
        if before[0][0] != after[0][0]:
            assert {index for _, index in before}.isdisjoint(index for _, index in after)
    for name in "abcdefghijk"[:count]:
        times = Counter(index for who, index in log if who == name)
        assert len(times) == 17
        assert max(times.values()) < 1.2 * min(times.values())


def test_the_first_call_of_a_turn_does_not_count() -> None:
    log: list[tuple[str, int]] = []
    found = play([Clocked(n, iter(range(1000)), log) for n in "ab"], 17, 2)
    assert [n for n, _ in log] == [*"aaaaa", *"bbbbb", *"bbbbb", *"aaaaa"]
    assert found == {n: [1, 2, 3, 4, 6, 7, 8, 9] for n in "ab"}


def test_spread() -> None:
    assert Spread.of([20, 20, 30, 40], [10, 10, 10, 10]) == Spread(2.5, 2.0, 3.25)


def test_floor_of_this_machine() -> None:
    from recreplay.capture.dag import Cost

    floor = measure_floor("cpu")
    assert 0.1 < floor.bytes_per_us / 1e3 < 2000  # GB/s; a shared machine may have 0.9
    assert 0.1 < floor.flops_per_us / 1e3 < 10_000  # GFLOP/s
    a, taken = torch.randn(1024, 1024), []
    for _ in range(9):
        begun = time.perf_counter()
        torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], "")
        taken.append(time.perf_counter() - begun)
    assert floor.flops_per_us > 0.6 * 2 * 1024**3 / (min(taken) * 1e6)  # no slower than torch is
    assert 0 < floor.operator_us < 100
    assert 0 < floor.call_us < 100
    assert floor.link_bytes_per_us is None  # nothing crosses
    made = Floor(bytes_per_us=100.0, flops_per_us=1000.0, call_us=2.0, operator_us=1.0)
    assert made.us(Cost(1000, 5000), 10**9) == 12.0
    assert made.bound(Cost(1000, 5000), 10**9) == "memory"
    assert made.us(Cost(100, 50_000), 0) == 52.0
    assert made.bound(Cost(100, 50_000), 0) == "arithmetic"
    assert made.bound(Cost(1, 1), 0) == "call"
    there = replace(made, link_bytes_per_us=10.0)
    assert there.us(Cost(1000, 5000), 500) == 52.0
    assert there.bound(Cost(1000, 5000), 500) == "link"


def test_what_crosses_to_a_device() -> None:
    """Inputs and outputs, and of ids that are narrowed half."""
    from recreplay.capture.ingest import ingest
    from recreplay.capture.least_work import crossing
    from recreplay.capture.lookups import id_bounds
    from recreplay.capture.rewrites.narrow_ids import narrow_ids, narrowed
    from recreplay.models import dlrm

    model = dlrm(tables=3, rows=50, lookups=4, dim=8, dense=5)
    ingested = ingest(model.eval(), model.example_inputs(4))
    program = specialise(ingested, 16)
    assert crossing(program) == 16 * (3 * 4 * 8 + 5 * 4 + 4)
    narrow_ids(program, narrowed(ingested.inputs, id_bounds(program)[0], "cuda"))
    assert crossing(program) == 16 * (3 * 4 * 4 + 5 * 4 + 4)


def test_eviction_covers_the_largest_cache() -> None:
    evict, nbytes = evictor("cpu")
    assert nbytes == 2 * largest_cache() >= 1 << 20
    evict()


def test_names_of_peers() -> None:
    assert [p.name for p in find_peers(["onnxruntime"])] == ["eager", "onnxruntime", "ours"]
    assert [p.name for p in find_peers(["all"])] == list(PEERS)
    with pytest.raises(RecReplayError, match=r"unknown peer 'tvm'; there is all, eager, "):
        find_peers(["tvm"])


def test_suites_name_models_that_fit() -> None:
    from recreplay.models import MODELS
    from recreplay.tools.factory_args import parse_factory_args

    # What is jagged has a suite of its own: not all peers take it.
    assert {b.name for b in find_suite("core").benchmarks} == set(MODELS) - {"two_tower"}
    for name in ("core", "jagged", "deeprecinfra", "microrec"):
        for benchmark in SUITES[name].benchmarks:
            card = MODELS[benchmark.target.rpartition(":")[2]]
            scale = parse_factory_args(card.factory, benchmark.arguments).get("rows_scale", 1.0)
            assert card.table_bytes * scale < 0.55e9


def test_options_that_do_not_fit(tmp_path: Path, invoke: Invoke) -> None:
    for options, message in (
        (("--cold",), "--cold goes with --peers; add --peers all"),
        (("--plot", tmp_path / "a.svg"), "--plot goes with --peers"),
        (
            ("--peers", "all", "--plot", tmp_path / "a.pdf"),
            "expected a file ending in .svg or .png",
        ),
        (
            ("--suite", "core", "--models", "bert", "--peers", "all"),
            "--models 'bert' is not measured",
        ),
    ):
        result = invoke("bench", *options)
        assert result.exit_code == 1
        assert message in result.stderr
