"""The example of the README: forty lines that embed the runtime."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

EXAMPLE = Path(__file__).parents[3] / "examples" / "fastapi_service.py"


def test_the_example_serves(shop_path: Path, shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTIFACT", str(shop_path))
    spec = importlib.util.spec_from_file_location("fastapi_service", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "fastapi_service", module)
    spec.loader.exec_module(module)
    request = shop.request(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # starlette would like another client than httpx
        from starlette.testclient import TestClient
    with TestClient(module.app) as client:
        inputs = {name: array.tolist() for name, array in request.items()}
        answer = client.post("/score", json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
        got = np.array(answer.json()["score"])
        np.testing.assert_allclose(got, shop.answer(request)["score"], rtol=1e-4, atol=1e-5)
        inputs["tag"] = [0, 1, 99]
        answer = client.post("/score", json={"inputs": inputs})
        assert answer.status_code == 422
        assert "id 99 is out of range" in answer.json()["detail"]
    assert len(EXAMPLE.read_text().splitlines()) <= 45
