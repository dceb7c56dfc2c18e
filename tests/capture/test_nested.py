"""Inputs that `forward` takes in lists and dicts, given flat by name or nested as it takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.runtime import Runtime
from recreplay.runtime.errors import CaptureError

Capture = Callable[..., Path]


class Keyed(nn.Module):
    """A table for each key of a dict, as of numbered fields."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({key: nn.Embedding(20, 4) for key in keys})

    def forward(self, fields: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([table(fields[key]) for key, table in self.tables.items()], 1)


class Batch(nn.Module):
    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        sparse = batch["sparse"]
        return batch["dense"] + 2 * sparse["a"] + 4 * sparse["b"][0] + 8 * sparse["b"][1]


def ids(seed: int) -> Tensor:
    return torch.randint(0, 20, (3,), generator=torch.Generator().manual_seed(seed))


def replayed(path: Path, request: Mapping[str, Tensor]) -> Any:
    with Runtime.load(path) as runtime:
        assert [spec.name for spec in runtime.manifest.inputs] == list(request)
        return runtime.run(dict(request))["output"]


@pytest.mark.parametrize("nested", [False, True])
def test_keys_that_are_numbers_are_not_places_of_a_list(captured: Capture, nested: bool) -> None:
    fields = {key: ids(i) for i, key in enumerate(["101", "205", "121"])}
    model = Keyed(list(fields))
    flat = {f"fields_{key}": value for key, value in fields.items()}
    got = replayed(captured(model, (fields,) if nested else flat), flat)
    np.testing.assert_array_equal(got, model(fields).detach().numpy())


def test_a_nested_example_tells_a_dict_from_a_list(captured: Capture) -> None:
    fields = {"1": ids(1), "0": ids(0)}
    model = Keyed(["0", "1"])
    got = replayed(captured(model, (fields,)), {"fields_1": fields["1"], "fields_0": fields["0"]})
    np.testing.assert_array_equal(got, model(fields).detach().numpy())


@pytest.mark.parametrize("by_name", [False, True])
def test_nesting_goes_as_deep_as_forward_takes_it(captured: Capture, by_name: bool) -> None:
    parts = dict(zip("xyzw", torch.randn(4, 3, 5), strict=True))
    batch = {"dense": parts["x"], "sparse": {"a": parts["y"], "b": [parts["z"], parts["w"]]}}
    flat = ("batch_dense", "batch_sparse_a", "batch_sparse_b_0", "batch_sparse_b_1")
    path = captured(Batch(), {"batch": batch} if by_name else (batch,))
    got = replayed(path, dict(zip(flat, parts.values(), strict=True)))
    np.testing.assert_allclose(got, Batch()(batch).numpy(), rtol=1e-5)


def test_names_that_meet_are_refused(captured: Capture) -> None:
    x = torch.randn(3, 5)
    batch = {"dense": x, "sparse_a": x, "sparse": {"a": x, "b": [x, x]}}
    with pytest.raises(
        CaptureError, match=r"^two example inputs are named 'batch_sparse_a': names"
    ):
        captured(Batch(), (batch,))
