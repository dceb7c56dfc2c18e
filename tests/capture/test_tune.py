"""The tuner: what it tries, how it chooses, and that the artifact holds what it kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recreplay.capture import capture
from recreplay.capture.choices import Choice, choices
from recreplay.capture.compilers.inductor import AUTOTUNED
from recreplay.capture.schedule import side_by_side
from recreplay.capture.tune import choose, hopeless
from recreplay.models import streamrec
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.blocks import blocks
from recreplay.runtime.errors import CaptureError
from recreplay.runtime.plan import plan_from

REWRITES = ("stack_lookups", "stack_branches", "inline_linears")
GIVEN = Choice(REWRITES, "matching", 8, "inductor")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "recreplay" / "tune"


def small() -> object:
    return streamrec(features=4, dims=(8,), rows_scale=0.001, lookups=3, trunk=(8, 1))


def test_off_is_what_was_asked_for() -> None:
    assert choices("off", GIVEN, "cuda", True) == [GIVEN]


def test_quick_on_a_gpu_tries_one_stream_and_several() -> None:
    found = choices("quick", GIVEN, "cuda", True)
    assert found[0] == GIVEN
    assert {(c.strategy, c.streams) for c in found} == {("single", 1), ("matching", 8)}
    assert {c.rewrites for c in found} == {REWRITES, ("stack_lookups", "inline_linears")}


def test_full_on_a_gpu_tries_every_strategy_and_width() -> None:
    found = choices("full", GIVEN, "cuda", True)
    assert found.pop() == replace(GIVEN, compiler=AUTOTUNED)
    several = {(c.strategy, c.streams) for c in found} - {("single", 1)}
    assert several == {(s, k) for s in ("feature", "matching", "greedy") for k in (2, 4, 8)}
    assert len(found) == len(set(found)) == 10 * 5
    wide = choices("full", replace(GIVEN, streams=40), "cuda", True)
    assert {c.streams for c in wide if c.strategy == "feature"} == {2, 4, 8, 40}


def test_a_given_strategy_and_given_streams_are_kept_to() -> None:
    found = choices("full", replace(GIVEN, streams=4), "cuda", False)
    assert {(c.strategy, c.streams) for c in found} == {("matching", 2), ("matching", 4)}
    single = choices("full", replace(GIVEN, strategy="single"), "cuda", False)
    assert {(c.strategy, c.streams) for c in single} == {("single", 8)}


@pytest.mark.parametrize("tune", ["quick", "full"])
def test_on_a_cpu_only_rewrites_differ(tune: str) -> None:
    found = choices(tune, replace(GIVEN, strategy="single"), "cpu", True)  # type: ignore[arg-type]
    assert {(c.strategy, c.streams, c.compiler) for c in found} == {("single", 8, "inductor")}
    assert len(found) == {"quick": 2, "full": 5}[tune]


@pytest.mark.parametrize("tune", ["quick", "full"])
def test_float32_is_tried_where_a_lower_precision_is_allowed(tune: str) -> None:
    lowered = replace(GIVEN, strategy="single", precision="bf16")
    found = choices(tune, lowered, "cpu", True)  # type: ignore[arg-type]
    assert found[0] == lowered
    assert replace(lowered, precision="fp32") in found
    count = {p: sum(c.precision == p for c in found) for p in ("bf16", "fp32")}
    assert count == {"quick": {"bf16": 2, "fp32": 1}, "full": {"bf16": 5, "fp32": 5}}[tune]
    tf32 = choices(tune, replace(GIVEN, precision="tf32"), "cuda", True)  # type: ignore[arg-type]
    assert {c.precision for c in tf32} == {"tf32"}  # a mode of all products of a lane


def test_tensorrt_is_a_candidate_only_where_it_can_be_used() -> None:
    assert "tensorrt" not in {c.compiler for c in choices("full", GIVEN, "cuda", True)}
    found = choices("quick", GIVEN, "cuda", True, tensorrt=True)
    assert found[-1] == replace(GIVEN, compiler="tensorrt")


def test_no_rewrite_is_tried_that_was_not_given() -> None:
    found = choices("full", replace(GIVEN, rewrites=("stack_lookups",)), "cpu", True)
    assert [c.rewrites for c in found] == [("stack_lookups",), ()]


@given(
    st.lists(st.tuples(st.none() | st.floats(1, 1e4), st.integers(1, 8)), min_size=1, max_size=9)
)
def test_the_fastest_is_kept_and_ties_go_to_fewer_streams(
    drawn: list[tuple[float | None, int]],
) -> None:
    times, streams = [t for t, _ in drawn], [k for _, k in drawn]
    if all(t is None for t in times):
        times[0] = 1.0
    best = choose(times, streams)
    kept, fastest = times[best], min(t for t in times if t is not None)
    assert kept is not None
    assert kept <= fastest * 1.02
    close = [
        k for t, k in zip(times, streams, strict=True) if t is not None and t <= fastest * 1.02
    ]
    assert streams[best] == min(close)


def test_what_the_model_has_far_behind_in_every_bucket_is_left_out() -> None:
    assert hopeless([[9.0, 9.0], [1.0, 1.0], [2.1, 1.9], [2.1, 2.1]]) == [
        False,  # what was asked for is always measured
        False,
        False,
        True,
    ]


def test_modelled_times_are_those_of_streams_side_by_side() -> None:
    # a: 0 -> 1 on one stream, b: 2 on another, and 3 waits for both.
    plan = plan_from("matching", ["a", "b", "c", "d"], [0, 0, 1, 0], [(0, 1), (1, 3), (2, 3)])
    assert side_by_side(plan, [1.0, 2.0, 5.0, 1.0]).total == 6.0
    one = plan_from("single", ["a", "b", "c", "d"], [0, 0, 0, 0], [(0, 1), (1, 3), (2, 3)])
    assert side_by_side(one, [1.0, 2.0, 5.0, 1.0]).total == 9.0


def test_the_artifact_says_what_was_measured_and_holds_what_was_kept(
    tmp_path: Path, own_cache: Path
) -> None:
    model = small()
    out = tmp_path / "tuned.rr"
    told: list[str] = []
    options: dict[str, Any] = {
        "out": out,
        "buckets": [1, 4],
        "compiler": "eager",
        "rewrites": ("stack_lookups", "stack_branches"),
        "tune": "full",
    }
    capture(model, progress=told.append, **options)  # type: ignore[arg-type]
    manifest = open_artifact(out).manifest
    for size in (1, 4):
        mine = [c for c in manifest.candidates if c.bucket == size]
        assert [c.rewrites for c in mine] == [
            ("stack_lookups", "stack_branches"),
            ("stack_lookups",),
            (),
        ]
        assert all(c.us is not None and c.us > 0 for c in mine)
        assert sum(c.chosen for c in mine) == 1
        kept = next(c for c in mine if c.chosen)
        assert kept.us is not None
        assert kept.us <= min(c.us or 1e9 for c in mine) * 1.02
    assert any(line.startswith("no candidate uses TensorRT: ") for line in told)
    packages = {path.name for path in (out / "segments").iterdir()}
    assert packages == {Path(p.path).name for p in manifest.packages.values()}
    with Runtime.load(out) as runtime:  # proves itself on stored requests
        assert runtime.manifest.candidates == manifest.candidates
    assert len(list(own_cache.iterdir())) == 1
    # The next capture of the same program measures nothing and takes the same.
    told.clear()
    capture(model, progress=told.append, overwrite=True, **options)  # type: ignore[arg-type]
    assert "tuned before on this device: taking what was fastest then" in told
    assert not any("candidates" in line for line in told)
    assert open_artifact(out).manifest.candidates == manifest.candidates


def test_buckets_may_keep_forms_that_stage_inputs_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stacked lookups put the ids of one width side by side; without them, none are."""
    taken: list[int] = []

    def in_turn(times: list[float | None], streams: list[int]) -> int:
        taken.append((0, len(times) - 1)[len(taken) % 2])
        return taken[-1]

    monkeypatch.setattr("recreplay.capture.tune.choose", in_turn)
    model = streamrec(features=6, dims=(4, 8), rows_scale=0.001, lookups=3, trunk=(8, 1))
    out = tmp_path / "tuned.rr"
    rewrites = ("stack_lookups", "stack_branches")
    capture(model, out=out, buckets=[1, 4], compiler="eager", rewrites=rewrites, tune="full")
    assert taken == [0, 2]
    with Runtime.load(out) as runtime:
        layouts = [[[s.name for s in b] for b in blocks(x)] for x in runtime.manifest.buckets]
        assert [name for block in layouts[0] for name in block] != [
            name for block in layouts[1] for name in block
        ]
        for rows in (1, 2, 3, 4, 7):
            request = model.example_inputs(rows, seed=rows)
            with torch.inference_mode():
                expected = model(**model.arguments(request))
            found = runtime.run({name: value.numpy() for name, value in request.items()})
            np.testing.assert_allclose(next(iter(found.values())), expected, atol=1e-5)


def test_a_torn_cache_is_measured_anew(tmp_path: Path, own_cache: Path) -> None:
    model = small()
    for turn in range(2):
        told: list[str] = []
        capture(
            model,  # type: ignore[arg-type]
            out=tmp_path / f"{turn}.rr",
            buckets=[2],
            compiler="eager",
            tune="quick",
            progress=told.append,
        )
        assert any(line.startswith("tuning bucket 2") for line in told)
        (file,) = own_cache.iterdir()
        data = json.loads(file.read_text())
        file.write_text(json.dumps(data)[:40])


def test_when_time_is_up_only_what_was_asked_for_is_measured(
    tmp_path: Path, own_cache: Path
) -> None:
    out = tmp_path / "late.rr"
    capture(
        small(),  # type: ignore[arg-type]
        out=out,
        buckets=[2],
        compiler="eager",
        tune="full",
        tune_seconds=0.0,
    )
    first, *rest = open_artifact(out).manifest.candidates
    assert first.chosen
    assert first.us is not None
    assert {(c.us, c.note) for c in rest} == {(None, "not measured: the time for tuning was up")}
    assert not own_cache.exists()  # the next capture should not rely on it


def test_an_unknown_tuning(tmp_path: Path) -> None:
    with pytest.raises(
        CaptureError, match="unknown tuning 'max'; expected one of off, quick, full"
    ):
        capture(small(), out=tmp_path / "x.rr", buckets=[2], tune="max")  # type: ignore[arg-type]
