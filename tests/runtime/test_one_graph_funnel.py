"""The example that makes a funnel one graph ranks as a funnel of two artifacts does."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from recreplay.capture import capture
from recreplay.models import Ranker
from recreplay.runtime import Funnel, Runtime, Stage
from recreplay.runtime.errors import IdRangeError

KEEP, ANSWER = 12, 5
BUCKETS = [8, 32]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "one_graph_funnel.py"
    spec = importlib.util.spec_from_file_location("one_graph_funnel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.KEEP, module.ANSWER = KEEP, ANSWER
    return module


@pytest.fixture(scope="module")
def both(
    example: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Runtime, Funnel, Ranker]]:
    folder = tmp_path_factory.mktemp("funnel")
    model = example.build()
    settings = {"buckets": BUCKETS, "compiler": "eager"}
    capture(model, out=folder / "one.rr", row_mask="mask", **settings)
    capture(model.small, out=folder / "small.rr", **settings)
    capture(model.large, out=folder / "large.rr", **settings)
    with (
        Runtime.load(folder / "one.rr") as one,
        Runtime.load(folder / "small.rr") as small,
        Runtime.load(folder / "large.rr") as large,
        Funnel([Stage(small, KEEP), Stage(large, ANSWER)]) as funnel,
    ):
        yield one, funnel, model.small


@pytest.mark.parametrize("rows", [1, 3, 5, 8, 11, 12, 13, 31, 32])
def test_the_same_rows_in_the_same_order(both: tuple[Runtime, Funnel, Ranker], rows: int) -> None:
    one, funnel, model = both
    for seed in range(5):
        request = {name: t.numpy() for name, t in model.example_inputs(rows, seed).items()}
        want = funnel.run(request)
        got = one.run(request)
        found = min(rows, ANSWER)
        np.testing.assert_array_equal(got["rows"][:found], want.rows)
        np.testing.assert_allclose(got["scores"][:found], want.scores, rtol=1e-5)
        assert (got["rows"][found:] == -1).all()
        assert (got["scores"][found:] == 0).all()


def test_scores_that_are_no_numbers_are_behind_all(both: tuple[Runtime, Funnel, Ranker]) -> None:
    one, funnel, model = both
    request = {name: t.numpy() for name, t in model.example_inputs(15).items()}
    request["dense"][[2, 9]] = np.nan
    want, got = funnel.run(request), one.run(request)
    np.testing.assert_array_equal(got["rows"][:ANSWER], want.rows)
    np.testing.assert_allclose(got["scores"][:ANSWER], want.scores, rtol=1e-5)


def test_all_ids_are_checked(both: tuple[Runtime, Funnel, Ranker]) -> None:
    one, _, model = both
    assert one.manifest.unchecked == ()
    assert len(one.manifest.bounds) == 26
    request = {name: t.numpy() for name, t in model.example_inputs(20).items()}
    request["ids_3"][17] = 10**9
    with pytest.raises(IdRangeError, match=r"^input 'ids_3', row 17: id 1000000000 is out of rang"):
        one.run(request)
