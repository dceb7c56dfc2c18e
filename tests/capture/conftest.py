"""Fixtures of tests of capture."""

from __future__ import annotations

import pytest

from recreplay.capture import pipeline


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let captures for the CPU apply every rewrite that they are asked for."""
    monkeypatch.setattr(pipeline, "_useless_rewrites", lambda compiler, device: set())
