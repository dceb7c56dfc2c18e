"""Versions exchanged while they serve; what fails is refused and named, and the old one goes on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recreplay.runtime import ModelRepository, Runtime, Serving
from recreplay.runtime.errors import ModelNotFoundError, RepositoryError, RuntimeClosedError
from recreplay.runtime.repository import ModelState


def agree(got: dict[str, Any], expected: dict[str, Any]) -> bool:
    return all(np.allclose(got[k], v, rtol=1e-4, atol=1e-5) for k, v in expected.items())


@pytest.fixture
def repository(shop_path: Path, tmp_path: Path) -> Iterator[ModelRepository]:
    shutil.copytree(shop_path, tmp_path / "repo" / "shop" / "1")
    found = ModelRepository(tmp_path / "repo")
    yield found
    found.close()


def test_the_newest_version_is_loaded(repository: ModelRepository, shop: Any, second: Any) -> None:
    shutil.copytree(second[1], repository.root / "shop" / "10")
    shutil.copytree(second[1], repository.root / "shop" / "2")
    assert repository.load_all() == []
    assert [(s.version, s.state) for s in repository.index()] == [
        ("1", "UNAVAILABLE"),
        ("2", "UNAVAILABLE"),
        ("10", "READY"),
    ]
    version, got = repository.run("shop", shop.request(3))
    assert version == "10"
    assert agree(got, second[0].answer(shop.request(3)))
    repository.load("shop", "1")
    version, future = repository.submit("shop", shop.request(3))
    assert version == "1"
    assert agree(future.result(timeout=30), shop.answer(shop.request(3)))


def test_a_folder_that_cannot_be_read_has_no_versions(
    repository: ModelRepository, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or that goes while it is looked into; the others are served."""
    (repository.root / "other").mkdir()
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "other":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    (failed,) = repository.load_all()
    assert str(failed) == (
        "the repository has no model 'other': no artifact and no funnel.json was found in "
        f"{repository.root / 'other'}/VERSION, where VERSION is a whole number"
    )
    assert {s.name: s.state for s in repository.index()} == {
        "other": "UNAVAILABLE",
        "shop": "READY",
    }
    repository.run("shop", shop.request(2))


def test_a_corrupt_version_leaves_the_old_one_serving(
    repository: ModelRepository, shop: Any
) -> None:
    repository.load("shop")
    bad = repository.root / "shop" / "2"
    shutil.copytree(repository.root / "shop" / "1", bad)
    weights = bad / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    message = r"^version 2 of model 'shop' was not loaded: .*weights.safetensors has sha256"
    with pytest.raises(RepositoryError, match=message):
        repository.load("shop")
    states = {s.version: s for s in repository.index()}
    assert states["1"].state == "READY"
    assert states["2"].state == "UNAVAILABLE"
    assert "weights.safetensors has sha256" in states["2"].reason
    assert agree(repository.run("shop", shop.request(3))[1], shop.answer(shop.request(3)))


def test_reasons_are_of_versions_that_there_are(repository: ModelRepository) -> None:
    bad = repository.root / "shop" / "2"
    shutil.copytree(repository.root / "shop" / "1", bad)
    (bad / "weights.safetensors").write_bytes(b"")
    with pytest.raises(RepositoryError):
        repository.load("shop")
    with pytest.raises(ModelNotFoundError, match=r"^model 'shop' is not loaded: .*shop/2/weights"):
        repository.get("shop")
    shutil.rmtree(bad)
    repository.load("shop")
    assert [s.version for s in repository.index()] == ["1"]
    repository.unload("shop")
    with pytest.raises(ModelNotFoundError, match=r"^model 'shop' is not loaded$"):
        repository.get("shop")


def test_who_asks_for_the_index_waits_for_the_disk_alone(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that hangs is looked into, and whoever asks for a model is told at once."""
    asked, answered = threading.Event(), threading.Event()
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        asked.set()
        assert answered.wait(10)
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    index = threading.Thread(target=repository.index)
    index.start()
    assert asked.wait(10)

    def get() -> None:
        with pytest.raises(ModelNotFoundError):
            repository.get("shop")
        answered.set()

    other = threading.Thread(target=get)
    other.start()
    other.join(2)
    told = answered.is_set()
    answered.set()
    index.join()
    other.join()
    assert told


def test_unloaded_models_and_unknown_ones(repository: ModelRepository, shop: Any) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^model 'shop' is not loaded$"):
        repository.run("shop", shop.request(1))
    repository.load("shop")
    with pytest.raises(ModelNotFoundError, match=r"^version 7 of model 'shop' is not loaded; ver"):
        repository.run("shop", shop.request(1), "7")
    with pytest.raises(ModelNotFoundError, match=r"^the repository has no version 7 of model"):
        repository.load("shop", "7")
    repository.unload("shop")
    with pytest.raises(ModelNotFoundError):
        repository.run("shop", shop.request(1))
    with pytest.raises(ModelNotFoundError, match=r"^model 'shop' is not loaded$"):
        repository.unload("shop")


@pytest.mark.parametrize("name", ["..", "../shop", "shop/1", "", ".", "/etc", "a\x00b", ".hidden"])
def test_names_cannot_leave_the_repository(repository: ModelRepository, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        repository.load(name)
    with pytest.raises(ModelNotFoundError):
        repository.load("shop", f"../{name}")


def test_serving_json_is_obeyed(repository: ModelRepository) -> None:
    path = repository.root / "shop" / "serving.json"
    path.write_text('{"lanes": 2, "max_delay_us": 0}')
    assert repository.load("shop").runtime.serving == Serving(lanes=2, max_delay_us=0)
    path.write_text('{"lanes": 0}')
    with pytest.raises(RepositoryError, match=r"lanes is 0; expected a whole number"):
        repository.load("shop")
    assert repository.get("shop").runtime.serving.lanes == 2


def test_serving_json_of_a_version_is_told(repository: ModelRepository) -> None:
    folder = repository.root / "shop"
    (folder / "1" / "serving.json").write_text('{"lanes": 2}')
    with pytest.raises(RepositoryError, match=rf"of a model: move it to {folder}/serving\.json"):
        repository.load("shop")


def test_what_is_empty_or_no_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    repository = ModelRepository(tmp_path)
    assert repository.index() == [ModelState("empty", "", "UNAVAILABLE", "no version on disk")]
    with pytest.raises(RepositoryError, match=r"it is not a directory$"):
        ModelRepository(tmp_path / "nowhere")


def test_a_closed_repository(repository: ModelRepository, shop: Any) -> None:
    repository.load("shop")
    repository.close()
    with pytest.raises(RuntimeClosedError):
        repository.run("shop", shop.request(1))
    with pytest.raises(RuntimeClosedError):
        repository.load("shop")
    closed = ModelState("shop", "1", "UNAVAILABLE", "this ModelRepository was closed")
    assert repository.index() == [closed]


def test_swaps_lose_nothing_and_mix_nothing(
    repository: ModelRepository, shop: Any, second: Any
) -> None:
    (repository.root / "shop" / "serving.json").write_text('{"lanes": 2, "max_delay_us": 0}')
    shutil.copytree(second[1], repository.root / "shop" / "2")
    repository.load("shop", "1")
    cases = []
    for rows in (1, 3, 8, 20):
        request = shop.request(rows, seed=rows)
        cases.append((request, {"1": shop.answer(request), "2": second[0].answer(request)}))
    stop, wrong, answered = threading.Event(), [], [0] * 8

    def ask(number: int) -> None:
        at = number
        while not stop.is_set():
            request, answers = cases[at % len(cases)]
            at += 1
            try:
                if number % 2:
                    version, got = repository.run("shop", request)
                else:
                    version, future = repository.submit("shop", request)
                    got = future.result(timeout=30)
            except Exception as error:
                wrong.append(error)
                return
            if not agree(got, answers[version]):
                wrong.append((number, version))
            answered[number] += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for turn in range(8):
        repository.load("shop", "2" if turn % 2 == 0 else "1")
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert wrong == []
    assert min(answered) > 0


def test_whatever_a_version_does_to_its_loader_the_others_are_loaded(
    repository: ModelRepository, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(repository.root / "shop", repository.root / "a")
    usual = Runtime.load

    def load(path: Path, **options: Any) -> Runtime:
        if path.parent.name == "a":
            raise KeyError("float13")
        return usual(path, **options)

    monkeypatch.setattr(Runtime, "load", load)
    [error] = repository.load_all()
    assert str(error) == "version 1 of model 'a' was not loaded: 'float13'"
    assert {s.name: s.state for s in repository.index()} == {"a": "UNAVAILABLE", "shop": "READY"}


def test_what_serves_goes_on_without_its_storage(repository: ModelRepository, shop: Any) -> None:
    repository.load_all()
    repository.root.rename(repository.root.with_name("away"))
    assert [(s.name, s.state) for s in repository.index()] == [("shop", "READY")]
    assert agree(repository.run("shop", shop.request(3))[1], shop.answer(shop.request(3)))
    with pytest.raises(ModelNotFoundError, match=r"^the repository has no model 'shop'$"):
        repository.load("shop")
    with pytest.raises(ModelNotFoundError, match=r"^the repository has no model 'aaa"):
        repository.load("a" * 5000)
