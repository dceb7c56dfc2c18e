"""Funnels as versions in a repository, against funnels that are made by hand."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import capture
from recreplay.runtime import Funnel, ModelRepository, Runtime, Serving, Stage
from recreplay.runtime.errors import (
    DeadlineExceeded,
    FunnelError,
    IdRangeError,
    InputNameError,
    RecReplayError,
    RepositoryError,
    RuntimeClosedError,
)
from recreplay.runtime.served_funnel import ServedFunnel, read_funnel

ROWS, KEEP, TOP = 30, 8, 3
Arrays = dict[str, Any]


class Ranker(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.item, self.top = nn.Embedding(50, 4), nn.Linear(4, 2)

    def forward(self, item: Tensor) -> dict[str, Tensor]:
        click, buy = self.top(self.item(item)).unbind(1)
        return {"click": click, "buy": buy}


class Rows(nn.Module):
    def forward(self, item: Tensor) -> dict[str, Tensor]:
        return {"rows": item * 2.0}


def request(seed: int = 0, rows: int = ROWS) -> Arrays:
    return {"item": np.random.default_rng(seed).permutation(50)[:rows]}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    example = {"item": torch.arange(4)}
    for name, model in (("small", Ranker(1)), ("large", Ranker(2)), ("clash", Rows())):
        capture(
            model.eval(), example, out=folder / f"{name}.rr", buckets=[KEEP, 32], compiler="eager"
        )
    return folder


def stages(last: str = "large", **more: Any) -> list[Arrays]:
    return [
        {"artifact": "small.rr", "keep": KEEP, "score": "click"},
        {"artifact": f"{last}.rr", "keep": TOP, "score": "buy"} | more,
    ]


def write(folder: Path, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "funnel.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def repository(artifacts: Path, tmp_path: Path) -> Iterator[ModelRepository]:
    """With a funnel `rank` of one version; artifacts lie beside its file."""
    shutil.copytree(artifacts, tmp_path / "repo" / "rank" / "1")
    write(tmp_path / "repo" / "rank" / "1", {"stages": stages()})
    found = ModelRepository(tmp_path / "repo")
    yield found
    found.close()


def by_hand(artifacts: Path, given: Arrays) -> Arrays:
    with (
        Runtime.load(artifacts / "small.rr") as small,
        Runtime.load(artifacts / "large.rr") as large,
        Funnel([Stage(small, KEEP, "click"), Stage(large, TOP, "buy")]) as funnel,
    ):
        ranking = funnel.run(given)
        return {"rows": ranking.rows, "scores": ranking.scores, **ranking.outputs}


def check(got: Arrays, want: Arrays) -> None:
    assert list(got) == list(want) == ["rows", "scores", "click", "buy"]
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].shape == (TOP,)


def test_it_answers_as_a_funnel_does(repository: ModelRepository, artifacts: Path) -> None:
    assert repository.load_all() == []
    given = request(1)
    want = by_hand(artifacts, given)
    check(repository.run("rank", given)[1], want)
    version, future = repository.submit("rank", given)
    check(future.result(30), want)
    assert version == "1"
    check(asyncio.run(repository.arun("rank", given))[1], want)
    takes, gives = repository.get("rank").tensors()
    assert [(s.name, s.dtype) for s in takes] == [("item", "int64")]
    assert [(s.name, s.dtype, s.row) for s in gives] == [
        ("rows", "int64", ()),
        ("scores", "float32", ()),
        ("click", "float32", ()),
        ("buy", "float32", ()),
    ]


def test_wrong_requests_and_late_ones(repository: ModelRepository) -> None:
    repository.load("rank")
    with pytest.raises(InputNameError, match="item"):
        repository.run("rank", {})
    bad = {"item": np.array([1, 50])}
    with pytest.raises(IdRangeError, match=r"^input 'item', row 1: id 50 is out of range"):
        repository.submit("rank", bad)[1].result(30)
    with pytest.raises(IdRangeError, match=r"^input 'item', row 1: id 50 is out of range"):
        asyncio.run(repository.arun("rank", bad))
    late = [repository.submit("rank", request(i), deadline_us=1)[1] for i in range(20)]
    errors = [future.exception(30) for future in late]
    assert any(isinstance(error, DeadlineExceeded) for error in errors), errors


def test_what_is_cancelled_has_no_answer(repository: ModelRepository) -> None:
    repository.load("rank")
    futures = [repository.submit("rank", request(i))[1] for i in range(200)]
    cancelled = [future.cancel() for future in futures]
    for future, gone in zip(futures, cancelled, strict=True):
        assert gone or len(future.result(30)["rows"]) == TOP


def test_a_version_is_exchanged_while_it_serves(
    repository: ModelRepository, artifacts: Path
) -> None:
    """The second version has its stages the other way round; each answer is of one of them."""
    shutil.copytree(artifacts, repository.root / "rank" / "2")
    other = [{**stages()[0], "artifact": "large.rr"}, {**stages()[1], "artifact": "small.rr"}]
    write(repository.root / "rank" / "2", {"stages": other})
    given = request(5)
    repository.load("rank", "1")
    first = repository.run("rank", given)[1]
    second = repository.load("rank", "2").runtime.run(given)
    assert (first["rows"] != second["rows"]).any()
    repository.load("rank", "1")
    wrong, seen, ended = [], set(), threading.Event()

    def ask() -> None:
        while not ended.is_set():
            version, got = repository.run("rank", given)
            seen.add(version)
            want = first if version == "1" else second
            if any((got[name] != array).any() for name, array in want.items()):
                wrong.append(version)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in ("2", "1", "2"):
        repository.load("rank", version)
    ended.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert seen == {"1", "2"}
    old = repository.get("rank").runtime
    repository.unload("rank")
    with pytest.raises(RuntimeClosedError):
        old.run(given)


def test_stages_are_served_as_they_or_the_model_say(repository: ModelRepository) -> None:
    folder = repository.root / "rank"
    (folder / "serving.json").write_text('{"lanes": 2}')
    write(folder / "1", {"stages": stages(serving={"lanes": 3, "max_delay_us": 0})})
    served = repository.load("rank")
    assert {n: r.serving for n, r in served.stages("rank").items()} == {
        "rank/1-small": Serving(lanes=2),
        "rank/2-large": Serving(lanes=3, max_delay_us=0),
    }
    assert served.runtime.lanes_alive() == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is no funnel; expected an object with a list 'stages'"),
        ({"stages": []}, "is no funnel; expected an object with a list 'stages'"),
        ({"stages": [{}], "top": 3}, "is no funnel; expected an object with a list 'stages'"),
        ({"stages": [{"keep": 3}]}, "stage 1 has no 'artifact'; expected the path of one"),
        (
            {"stages": [{"artifact": "a", "kept": 3}]},
            "stage 1 has unknown kept; expected artifact, keep, score, serving",
        ),
        (
            {"stages": [{"artifact": "a", "score": 3}]},
            "stage 1 has the score 3; expected the name of an output",
        ),
        ({"stages": [{"artifact": "a", "serving": 3}]}, "stage 1: serving: not an object"),
        (
            {"stages": [{"artifact": "a", "serving": {"lanes": 0}}]},
            "lanes is 0; expected a whole number, 1 or more",
        ),
    ],
)
def test_files_that_are_no_funnel(tmp_path: Path, content: Any, message: str) -> None:
    write(tmp_path, content)
    with pytest.raises(RecReplayError, match=message):
        read_funnel(tmp_path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "funnel.json").write_text("{")
    with pytest.raises(FunnelError, match=r"funnel\.json is no funnel: Expecting"):
        read_funnel(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (stages("absent"), "no artifact at .*absent.rr"),
        (stages(score="hidden"), "stage 2 is to be ranked by 'hidden'; its outputs are click, buy"),
        (stages(keep=KEEP + 1), "stage 2 keeps 9 rows, and the stage before it 8"),
        (stages("clash", score="rows"), "the last stage has an output 'rows', as the answer of a"),
    ],
)
def test_a_funnel_that_cannot_be_made_leaves_the_old_one(
    repository: ModelRepository, artifacts: Path, content: Any, message: str
) -> None:
    repository.load("rank")
    shutil.copytree(artifacts, repository.root / "rank" / "2")
    write(repository.root / "rank" / "2", {"stages": content})
    threads = threading.active_count()
    with pytest.raises(RepositoryError, match=rf"^version 2 of .* was not loaded: .*{message}"):
        repository.load("rank")
    assert threading.active_count() == threads  # what was loaded of it is closed again
    assert [(s.version, s.state) for s in repository.index()] == [
        ("1", "READY"),
        ("2", "UNAVAILABLE"),
    ]
    repository.run("rank", request())


def test_one_stage_may_lie_elsewhere_and_serve_alone(artifacts: Path, tmp_path: Path) -> None:
    shutil.copytree(artifacts / "large.rr", tmp_path / "large" / "7")
    content = [{"artifact": "../../large/7", "score": "buy"}]
    write(tmp_path / "best" / "1", {"stages": content})
    repository = ModelRepository(tmp_path)
    assert repository.load_all() == []
    given = request(2)
    _, scores = repository.run("large", given)
    _, best = repository.run("best", given)
    np.testing.assert_array_equal(best["rows"], np.argsort(-scores["buy"], kind="stable"))
    assert isinstance(repository.get("best").runtime, ServedFunnel)
    repository.close()
