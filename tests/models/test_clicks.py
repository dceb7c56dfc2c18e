"""The generated log of clicks: one seed, one log, of one truth."""

from __future__ import annotations

import pytest
import torch

from recreplay.models import clicks, rm_small

SCALE = 0.001


def test_a_seed_is_a_log() -> None:
    log = clicks(500, seed=3, rows_scale=SCALE)
    again = clicks(500, seed=3, rows_scale=SCALE)
    assert all(torch.equal(log[name], again[name]) for name in log)
    other = clicks(500, seed=4, rows_scale=SCALE)
    assert not torch.equal(log["ids_2"], other["ids_2"])
    assert log["click"].unique().tolist() == [0.0, 1.0]


def test_the_models_of_recpipe_take_it() -> None:
    log = clicks(3, rows_scale=SCALE)
    model = rm_small(rows_scale=SCALE)
    inputs = {name: column for name, column in log.items() if name != "click"}
    wanted = {k: (v.dtype, v.shape) for k, v in model.example_inputs(3).items()}
    assert {k: (v.dtype, v.shape) for k, v in inputs.items()} == wanted
    assert model(**model.arguments(inputs)).shape == (3, 1)


@pytest.mark.parametrize("truth", [0, 1])
def test_clicks_depend_on_what_is_seen(truth: int) -> None:
    """A linear model of the dense values alone, fitted to one log, sorts another of the same truth
    better than chance, and one of another truth less so."""
    log = clicks(20_000, seed=1, truth=truth, rows_scale=SCALE)
    assert 0.05 < log["click"].mean() < 0.4
    fitted = torch.linalg.lstsq(log["dense"], log["click"] - log["click"].mean()).solution

    def lift(other: int) -> float:
        test = clicks(20_000, seed=2, truth=other, rows_scale=SCALE)
        best = (test["dense"] @ fitted).topk(2000).indices
        return float(test["click"][best].mean() / test["click"].mean())

    assert lift(truth) > 1.3
    assert lift(truth) > lift(truth + 5) + 0.1
