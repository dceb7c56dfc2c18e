"""Matrix products of float32 tensors in TF32 on CUDA, while graphs are recorded.

cuBLAS is told so when it is called, and what it was told stays in the recorded graph: a replay asks
nobody. Triton kernels of a package were compiled so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """With `"tf32"`, torch's switch for it, which is the process's, is on inside of the block."""
    if precision != "tf32":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
