"""Fixtures of tests of capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from recreplay.capture import pipeline

Written = Callable[..., tuple[str, str]]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let captures for the CPU apply every rewrite that they are asked for."""
    monkeypatch.setattr(pipeline, "_useless_rewrites", lambda compiler, device: set())


class _Stop(Exception):
    pass


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """Inductor's own text for a module and examples of its arguments, with its `settings`: the
    wrapper of a package and its loops, caught before they go to a compiler."""
    from torch._inductor.codecache import AotCodeCompiler

    found: list[tuple[str, str]] = []

    def catch(graph: Any, wrapper_code: str, kernel_code: str, *others: Any, **more: Any) -> Any:
        found.append((wrapper_code, kernel_code))
        raise _Stop("caught")

    monkeypatch.setattr(AotCodeCompiler, "compile", catch)

    def write(module: nn.Module, *examples: torch.Tensor, **settings: Any) -> tuple[str, str]:
        exported = torch.export.export(module.eval(), examples)
        with pytest.raises(Exception, match="caught"):
            torch._inductor.aoti_compile_and_package(exported, inductor_configs=settings)
        return found[-1]

    return write
