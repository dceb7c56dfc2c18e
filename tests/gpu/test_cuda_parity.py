"""Captured CUDA graphs against the eager model: every model, strategy and bucket."""

from pathlib import Path

import pytest
from comparing import check

from recreplay.capture import DEFAULT_REWRITES, capture
from recreplay.capture.assign import STRATEGIES
from recreplay.capture.compilers.toolchain import inductor_problem
from recreplay.models import MODELS
from recreplay.runtime import Runtime

BUCKETS = [2, 16]
SCALE = 0.001


def capture_and_check(name: str, folder: Path, **options: object) -> None:
    """At 1 row, at each edge and beside it, and above the largest bucket."""
    model = MODELS[name].factory(rows_scale=SCALE)
    capture(model, out=folder / "m.rr", buckets=BUCKETS, device="cuda", **options)
    with Runtime.load(folder / "m.rr") as runtime:
        for seed, rows in enumerate((1, 2, 3, 15, 16, 17, 40)):
            check(model, runtime, rows, seed)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_eager_segments_replay_what_the_model_computes(
    name: str, strategy: str, tmp_path: Path
) -> None:
    """Branches as they are on their streams, or with all that is done to them."""
    rewrites = DEFAULT_REWRITES if strategy in ("single", "feature") else ()
    capture_and_check(name, tmp_path, strategy=strategy, compiler="eager", rewrites=rewrites)


@pytest.mark.parametrize("strategy", ["single", "matching"])
@pytest.mark.parametrize("name", ["dlrm_rmc1", "streamrec"])
def test_compiled_segments_replay_what_the_model_computes(
    name: str, strategy: str, tmp_path: Path
) -> None:
    """AOTInductor packages inside of the captured graph."""
    problem = inductor_problem("cuda")
    if problem is not None:
        pytest.skip(problem)
    capture_and_check(name, tmp_path, strategy=strategy, compiler="inductor")
