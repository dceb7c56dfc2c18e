"""Inductor's C++ without views that are only made for their address."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.compilers.views_as_pointers import views_as_pointers
from recreplay.capture.compilers.wrapper_source import edit_wrappers

VIEW = (
    "    auto {0} = wrap_with_raii_handle_if_needed("
    "reinterpret_tensor_wrapper({1}, 2, int_array_2, int_array_3, {2}L));  // alias\n"
)


def test_kernels_read_the_address_inside_of_the_whole() -> None:
    source = (
        "    RAIIAtenTensorHandle buf9(buf9_handle);\n"
        + VIEW.format("buf1", "buf9", 0)
        + VIEW.format("buf11", "buf9", 48)
        + "    kernel((const float*)(arg1.data_ptr()), (float*)(buf1.data_ptr()), "
        "(float*)(buf11.data_ptr()), 3L);\n"
        "    buf1.reset();\n"
        "    buf11.reset();\n"
        "    next((const float*)(buf9.data_ptr()));\n"
        "    buf9.reset();\n"
    )
    assert views_as_pointers(source) == (
        "    RAIIAtenTensorHandle buf9(buf9_handle);\n"
        "    kernel((const float*)(arg1.data_ptr()), ((float*)(buf9.data_ptr()) + 0L), "
        "((float*)(buf9.data_ptr()) + 48L), 3L);\n"
        "    next((const float*)(buf9.data_ptr()));\n"
        "    buf9.reset();\n"
    )


def test_views_of_views_go_too() -> None:
    source = (
        VIEW.format("buf2", "buf1", 8)
        + VIEW.format("buf3", "buf2", 4)
        + "    kernel((float*)(buf3.data_ptr()));\n    buf3.reset();\n    buf2.reset();\n"
    )
    assert views_as_pointers(source) == "    kernel((((float*)(buf1.data_ptr()) + 8L) + 4L));\n"


@pytest.mark.parametrize(
    "use",
    [
        "    call(buf1);\n",  # the tensor itself
        "    buf9.reset();\n    kernel((float*)(buf1.data_ptr()));\n",  # after the whole has gone
        "    kernel(buf1.data_ptr());\n",  # of no type, so that an offset means nothing
    ],
)
def test_views_with_other_uses_stay(use: str) -> None:
    source = VIEW.format("buf1", "buf9", 8) + use + "    buf1.reset();\n"
    assert views_as_pointers(source) == source


def test_views_that_begin_at_a_size_known_later_stay() -> None:
    source = (
        "    auto buf1 = wrap_with_raii_handle_if_needed("
        "reinterpret_tensor_wrapper(buf9, 2, int_array_2, int_array_3, 4L*s0));  // alias\n"
        "    kernel((float*)(buf1.data_ptr()));\n    buf1.reset();\n"
    )
    assert views_as_pointers(source) == source


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(9, 4) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        return torch.cat([torch.relu(row) for row in rows], dim=1)


def test_torch_still_writes_them_as_we_read_them(
    written: Callable[..., tuple[str, str]],
) -> None:
    """Inductor's own text for three lookups in a row."""
    example = torch.zeros(4, 3, dtype=torch.int64)
    usual, _ = written(Tables(), example)
    edit_wrappers(views_as_pointers)
    ours, _ = written(Tables(), example)
    before, after = (text.count("reinterpret_tensor_wrapper(buf") for text in (usual, ours))
    assert (before, after) == (3, 0)
    assert ours.count(".data_ptr()) + ") == 3
