"""In what float32 tensors are multiplied on CUDA, while graphs are recorded.

cuBLAS and cuDNN are told so when they are called, and what they were told stays in the recorded
graph: a replay asks nobody. Triton kernels of a package were compiled so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Torch's switches for it, which are the process's, inside of the block: with `"tf32"`, all are
    on. Otherwise those of convolutions and recurrent layers, which torch has on unless it is told,
    are off; that of matrix products is as it is."""
    backends: Any = torch.backends  # whose types torch does not tell
    convolving = [backends.cudnn.conv, backends.cudnn.rnn]
    wanted = [(switch, "tf32" if precision == "tf32" else "ieee") for switch in convolving]
    if precision == "tf32":
        wanted.append((backends.cuda.matmul, "tf32"))
    before = [(switch, switch.fp32_precision) for switch, _ in wanted]
    try:
        for switch, value in wanted:
            switch.fp32_precision = value
        yield
    finally:
        for switch, value in before:
            switch.fp32_precision = value
