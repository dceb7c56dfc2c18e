"""Errors of what inductor leaves to torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor
from torch import Tensor, nn

from recreplay.capture import capture
from recreplay.capture.compilers.checked_calls import with_checked_calls
from recreplay.runtime import Runtime
from recreplay.runtime.errors import ReplayError


class Largest(nn.Module):
    """The largest of a row's values by kind; the model computes what kind each is."""

    def forward(self, kinds: Tensor, values: Tensor) -> Tensor:
        nothing = torch.zeros(values.shape[0], 5)
        return nothing.scatter_reduce(1, 4 - kinds, values, "amax", include_self=False)


def test_a_scatter_that_torch_refuses_fails_the_replay(tmp_path: Path) -> None:
    example = {"kinds": torch.randint(0, 4, (4, 3)), "values": torch.randn(4, 3)}
    model = Largest().eval()
    capture(model, example, out=tmp_path / "a.rr", buckets=[4], compiler="inductor")
    with Runtime.load(tmp_path / "a.rr") as runtime:
        request = {name: value.numpy() for name, value in example.items()}
        wrong = np.full((4, 3), -1)
        with pytest.raises(ReplayError, match=r"^replaying bucket 4 failed"):
            runtime.run(request | {"kinds": wrong})
        np.testing.assert_array_equal(runtime.run(request)["output"], model(**example))


def test_torch_still_writes_the_call_as_we_read_it() -> None:
    call = 'aoti_torch_cpu_scatter_reduce_two_out(buf0, buf0,1,arg0,arg1, "amax", 1)'
    assert with_checked_calls(f"    {call};\n") == f"    AOTI_TORCH_ERROR_CODE_CHECK({call});\n"
    checked = f"    AOTI_TORCH_ERROR_CODE_CHECK({call});\n"
    assert with_checked_calls(checked) == checked
    written = Path(torch._inductor.__file__).parent / "codegen" / "cpp_wrapper_cpu.py"
    assert 'line = f"{cpp_kernel_name}({output}, ' in written.read_text()
