"""Tensors side by side in memory of huge pages."""

from __future__ import annotations

import mmap
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recreplay.runtime.huge_pages import HugePages

DTYPES = [torch.float32, torch.int8, torch.bfloat16, torch.int64, torch.bool]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 40), max_size=3), st.sampled_from(DTYPES)), max_size=8
    )
)
def test_copies_are_equal_aligned_and_apart(shapes: list[tuple[list[int], torch.dtype]]) -> None:
    memory = HugePages()
    tensors = [torch.randint(0, 2, shape).to(dtype) for shape, dtype in shapes]
    copies = [memory.copy(tensor) for tensor in tensors]
    spans = []
    for tensor, copy in zip(tensors, copies, strict=True):
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)
        assert copy.untyped_storage().nbytes() == copy.nbytes
        if copy.numel():
            assert copy.data_ptr() % 64 == 0
            spans.append((copy.data_ptr(), copy.data_ptr() + copy.nbytes))
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    for copy in copies:  # each is written alone
        copy.fill_(1)
    assert all(bool((copy == 1).all()) for copy in copies)


def test_a_copy_is_contiguous_and_outlives_the_memory() -> None:
    turned = torch.arange(12.0).view(3, 4).t()
    copy = HugePages().copy(turned)
    assert copy.is_contiguous()
    assert torch.equal(copy, turned)


def test_large_tensors_begin_a_huge_page() -> None:
    memory = HugePages()
    memory.copy(torch.ones(3))
    copy = memory.copy(torch.ones(9 << 20))  # 36 MiB of float32: more than is asked for at once
    assert copy.data_ptr() % (2 << 20) == 0


def test_without_huge_pages_there_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    turned = torch.arange(12.0).view(3, 4).t()
    copy = HugePages().copy(turned)
    assert copy.is_contiguous()
    assert torch.equal(copy, turned)
    assert copy.data_ptr() != turned.data_ptr()
