"""The threads that help to fill large requests: when there are some, and when they end.

That what they copy is right is for `test_fill.py` and `test_native_mixed.py` to show, whose
requests they share as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filling import HELPERS, Staged, bucket

from recreplay.capture.compilers.c_library import build_c_library
from recreplay.runtime.errors import IdRangeError
from recreplay.runtime.native_fill import FillLibrary
from recreplay.runtime.spec import IdBound

ROWS, TABLE = 16384, 1000
COLUMNS = 32
LARGE = bucket(ROWS, [("a", "int32", (COLUMNS,)), ("b", "int64", (COLUMNS,))])  # 6 MB
SMALL = bucket(64, [("a", "int32", (COLUMNS,)), ("b", "int64", (COLUMNS,))])
BOUNDS = [IdBound("a", None, TABLE, "first"), IdBound("b", None, TABLE, "second")]


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def request(rows: int, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {name: draw.integers(0, TABLE, (rows, COLUMNS)) for name in "ab"}


def staged(library: FillLibrary, made: Any = LARGE) -> Staged:
    Staged.library = library
    return Staged(made, BOUNDS, wide="a")


def expect(where: Staged, given: dict[str, Any]) -> None:
    for name, value in given.items():
        view, rows = where.views[name], len(value)
        np.testing.assert_array_equal(view[:rows], value)
        assert (view[rows:] == value[0]).all()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    build_c_library("fill.c", tmp_path / "fill.so")
    return tmp_path / "fill.so"


@pytest.fixture
def library(path: Path) -> Iterator[FillLibrary]:
    found = FillLibrary(path, HELPERS)
    yield found
    found.close()


def test_helpers_begin_with_the_first_large_request_and_end_with_the_library(path: Path) -> None:
    before = threads()
    first, second = FillLibrary(path, HELPERS), FillLibrary(path, 1)
    staged(first, SMALL).fill(64, **request(64))
    assert threads() == before
    for library in (first, second):
        where, given = staged(library), request(ROWS - 100)
        assert where.fill(ROWS - 100, **given) == 0
        expect(where, given)
        assert threads() == before + HELPERS
    first.close()
    assert threads() == before + HELPERS
    second.close()
    assert threads() == before
    again = FillLibrary(path, 1)
    staged(again).fill(ROWS, **request(ROWS))
    assert threads() == before + 1
    again.close()
    assert threads() == before


def test_without_helpers_nobody_begins(path: Path) -> None:
    before = threads()
    library = FillLibrary(path)
    where, given = staged(library), request(ROWS)
    assert where.fill(ROWS, **given) == 0
    expect(where, given)
    assert threads() == before
    library.close()


@pytest.mark.parametrize("row", [0, 1, ROWS // 2, ROWS - 1])
@pytest.mark.parametrize(
    ("name", "table", "bad"),
    [("a", "first", 2**32 + 5), ("a", "first", -1), ("b", "second", TABLE)],
)
def test_a_bad_id_is_found_wherever_it_is(
    library: FillLibrary, name: str, table: str, bad: int, row: int
) -> None:
    where, given = staged(library), request(ROWS)
    given[name][row, 7] = bad
    problem = rf"^input '{name}', row {row}, position 7: id {bad} is out of range; table '{table}'"
    with pytest.raises(IdRangeError, match=problem):
        where.fill(ROWS, **given)
    assert where.fill(ROWS, **request(ROWS, 1)) == 0


def test_who_finds_them_busy_fills_alone(library: FillLibrary) -> None:
    def fill(seed: int) -> None:
        where = Staged(LARGE, BOUNDS, wide="a")
        for turn in range(20):
            given = request(ROWS - turn, seed + 100 * turn)
            assert where.fill(ROWS - turn, **given) == 0
            expect(where, given)

    Staged.library = library
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(fill, seed) for seed in range(4)]:
            done.result()


FORKED = """
import os, sys
sys.path.insert(0, sys.argv[2])
from test_crew import FillLibrary, HELPERS, ROWS, expect, request, staged, threads
library = FillLibrary(sys.argv[1], HELPERS)
where, given = staged(library), request(ROWS)
where.fill(ROWS, **given)
child = os.fork()
if not child:
    where, other = staged(library), request(ROWS, 1)
    where.fill(ROWS, **other)
    expect(where, other)
    alone = threads() == 1
    library.close()
    os._exit(0 if alone else 3)
assert os.waitpid(child, 0)[1] == 0
where.fill(ROWS, **request(ROWS, 2))
library.close()
"""


def test_after_a_fork_the_child_fills_alone(path: Path) -> None:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-W", "error", "-c", FORKED, str(path), here]
    if sys.version_info >= (3, 12):
        command[2] = "ignore:This process:DeprecationWarning"  # it says that a fork leaves threads
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
