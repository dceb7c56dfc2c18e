"""Our own operators in packages: where their results are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.compilers.own_functions import OwnFunctions
from recreplay.runtime.aten import PACKED_LINEAR, resolve

CALL = "aoti_torch_cpu_recreplay_packed_linear_out(arg"  # into an argument
ALLOCATED = "aoti_torch_empty_strided("


class Segment(nn.Module):
    """A layer whose results go where `write` says."""

    def __init__(self, write: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.write = write

    def forward(self, x: Tensor, packed: Tensor, out: Tensor) -> None:
        self.write(resolve(PACKED_LINEAR)(x, packed, None, 1, 64, False), out)


@pytest.fixture
def text(written: Callable[..., tuple[str, str]]) -> Callable[..., str]:
    """What a package does in a call, of a segment and the shape that it writes to."""
    settings = OwnFunctions(1, 64).declarations({PACKED_LINEAR})

    def of(module: nn.Module, *shape: int) -> str:
        examples = (torch.zeros(4, 32), torch.zeros(64, 32), torch.zeros(shape))
        wrapper, _ = written(module, *examples, **settings)
        return wrapper[wrapper.index("::run_impl(") :]

    return of


def test_results_are_written_where_the_segment_gives_them_out(text: Callable[..., str]) -> None:
    found = text(Segment(lambda value, out: out.copy_(value)), 4, 64)
    assert CALL in found
    assert ALLOCATED not in found


@pytest.mark.parametrize(
    ("write", "shape"),
    [
        (lambda value, out: out.copy_(value + 1), (4, 64)),
        (lambda value, out: out.copy_(value * value.sum()), (4, 64)),
        (lambda value, out: out.copy_(value), (3, 4, 64)),  # thrice
    ],
    ids=["of something else", "read as well", "repeated"],
)
def test_what_is_not_given_out_as_it_is_has_memory_of_its_own(
    text: Callable[..., str], write: Callable[[Tensor, Tensor], Any], shape: tuple[int, ...]
) -> None:
    found = text(Segment(write), *shape)
    assert CALL not in found
    assert ALLOCATED in found
