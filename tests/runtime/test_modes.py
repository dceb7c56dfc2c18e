"""What a caller has switched on in torch changes neither what is loaded nor what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recreplay.runtime import Runtime


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")  # the one besides the CPU that is everywhere
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
    "device": default_device,
}


def agree(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_loaded_and_run_under_a_mode(mode: str, shop_path: Path, shop: Any) -> None:
    request = shop.request(3)
    want = shop.answer(request)
    with MODES[mode](), Runtime.load(shop_path) as runtime:
        agree(runtime.run(request), want)
    with Runtime.load(shop_path) as runtime:
        with MODES[mode]():
            agree(runtime.run(request), want)
        agree(runtime.run(request), want)
        assert runtime.stats()["lanes"] == {"alive": 1, "rebuilt": 0, "retired": 0}


@pytest.mark.parametrize("mode", MODES)
def test_refreshed_under_a_mode_and_after_it(mode: str, shop_path: Path, shop: Any) -> None:
    bias = np.ones(5, np.float32)
    with MODES[mode]():
        runtime = Runtime.load(shop_path)
    with runtime:
        before = runtime.run(shop.request(3))["vector"] - shop.top.bias.detach().numpy()
        runtime.update_weights({"top.bias": bias})
        np.testing.assert_allclose(runtime.run(shop.request(3))["vector"], before + 1, atol=1e-5)
        with MODES[mode]():
            runtime.update_weights({"top.bias": 2 * bias})
            runtime.update_rows("tag.weight", [0], np.zeros((1, 4), np.float32))
        row = shop.request(3)
        row["tag"][:] = 1  # not the row that was written
        runtime.run(row)
        assert runtime.stats()["refreshes"] == 3


def test_autocast_of_the_caller_is_no_part_of_the_model(captured: Any) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    path = captured(model, {"input": torch.randn(4, 3)}, rewrites=())
    request = np.random.default_rng(1).standard_normal((3, 3)).astype("f4")
    with torch.inference_mode():
        want = model(torch.from_numpy(request)).numpy()
    with MODES["autocast"](), Runtime.load(path) as runtime:
        np.testing.assert_allclose(runtime.run({"input": request})["output"], want, rtol=1e-5)
        assert runtime.stats()["lanes"] == {"alive": 1, "rebuilt": 0, "retired": 0}
