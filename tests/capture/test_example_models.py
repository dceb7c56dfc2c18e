"""Models of the examples, loaded as `bench` loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recreplay.capture import capture
from recreplay.runtime import Runtime
from recreplay.tools.target import load_target

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = {
    "feature_models": ("wukong", "rank_mixer", "pep_net", "star"),
    "history_models": ("hstu", "one_trans", "longer", "trans_act", "sdim"),
    "library_models": ("sdm", "pnn"),
}


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, names in MODELS.items() for name in names]
)
def test_models_equal_eager(file: str, name: str, tmp_path: Path) -> None:
    model = load_target(f"{EXAMPLES / file}.py:{name}").model
    assert isinstance(model, torch.nn.Module)
    capture(model, out=tmp_path / "m.rr", buckets=[4], compiler="eager")
    request = model.example_inputs(3, seed=1)
    with Runtime.load(tmp_path / "m.rr") as runtime, torch.no_grad():
        got = runtime.run(request)["output"]
        want = model(**request).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_latest_items_count() -> None:
    model: Any = load_target(f"{EXAMPLES / 'history_models'}.py:longer").model
    request = model.example_inputs(3, seed=1)
    with torch.no_grad():
        before = model(**request)
        model.latest = 1
        assert (model(**request) - before).abs().max() > 1e-3
