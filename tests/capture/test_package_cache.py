"""Packages that were compiled before are used again, and only where they are the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from recreplay.capture.compilers import package_cache
from recreplay.capture.compilers.package_cache import PackageCache

ENVIRONMENT = {"torch": "2.13.0", "device": "cpu"}
SETTINGS = {"cpp.threads": 1}
CODE = {"static": {"operators": ["relu"]}}


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with files in it, of 4 KB that cannot be packed."""
    folder = tmp_path / "package"
    (folder / "data" / "model").mkdir(parents=True)
    (folder / "version").write_text("1")
    (folder / "data" / "model" / "code.so").write_bytes(os.urandom(4096))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_was_kept_is_found(package: Path, tmp_path: Path) -> None:
    assert not PackageCache(ENVIRONMENT, SETTINGS).take(CODE, tmp_path / "found")
    assert not (tmp_path / "found").exists()
    PackageCache(ENVIRONMENT, SETTINGS).keep(CODE, package)
    assert PackageCache(ENVIRONMENT, SETTINGS).take(CODE, tmp_path / "found")
    assert files(tmp_path / "found") == files(package)


@pytest.mark.parametrize(
    ("environment", "settings", "code"),
    [
        ({**ENVIRONMENT, "torch": "2.14.0"}, SETTINGS, CODE),
        (ENVIRONMENT, {"cpp.threads": 2}, CODE),
        (ENVIRONMENT, SETTINGS, {"dynamic": CODE["static"]}),
        (ENVIRONMENT, SETTINGS, {"static": {"operators": ["relu", "relu"]}}),
    ],
)
def test_anything_else_is_not(
    package: Path, tmp_path: Path, environment: dict[str, str], settings: Any, code: Any
) -> None:
    PackageCache(ENVIRONMENT, SETTINGS).keep(CODE, package)
    assert not PackageCache(environment, settings).take(code, tmp_path / "found")


@pytest.mark.parametrize("variable", ["CXX", "ATEN_CPU_CAPABILITY", "TORCHINDUCTOR_CPP_WRAPPER"])
def test_variables_that_compilers_read_count(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv(variable, raising=False)
    PackageCache(ENVIRONMENT, SETTINGS).keep(CODE, package)
    monkeypatch.setenv(variable, "default")
    assert not PackageCache(ENVIRONMENT, SETTINGS).take(CODE, tmp_path / "found")


def test_a_damaged_file_is_as_good_as_none(package: Path, tmp_path: Path, cache_home: Path) -> None:
    cache = PackageCache(ENVIRONMENT, SETTINGS)
    cache.keep(CODE, package)
    [kept] = cache_home.rglob("*.zip")
    whole = kept.read_bytes()
    for damaged in (b"", whole[:200], whole[:2000] + b"\0" + whole[2001:]):
        kept.write_bytes(damaged)
        assert not cache.take(CODE, tmp_path / "found")
        assert not (tmp_path / "found").exists()
    cache.keep(CODE, package)
    assert cache.take(CODE, tmp_path / "found")


def test_a_folder_that_cannot_be_written_is_left(
    package: Path, tmp_path: Path, cache_home: Path
) -> None:
    cache_home.write_text("a file")
    cache = PackageCache(ENVIRONMENT, SETTINGS)
    cache.keep(CODE, package)
    assert not cache.take(CODE, tmp_path / "found")


def test_what_was_used_longest_ago_goes(
    package: Path, tmp_path: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_cache, "MOST_BYTES", 10_000)  # two of them
    cache = PackageCache(ENVIRONMENT, SETTINGS)
    for hour, name in enumerate("ab"):
        cache.keep(name, package)
        for path in cache_home.rglob("*.zip"):
            if path.stat().st_mtime > 1e6:
                os.utime(path, (hour * 3600, hour * 3600))
    assert cache.take("a", tmp_path / "used")  # now
    cache.keep("c", package)
    found = [name for name in "abc" if cache.take(name, tmp_path / name)]
    assert found == ["a", "c"]
