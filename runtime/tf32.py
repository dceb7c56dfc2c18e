"""In what float32 tensors are multiplied on CUDA, while graphs are recorded.

cuBLAS and cuDNN are told so when they are called, and what they were told stays in the recorded
graph: a replay asks nobody. Triton kernels of a package were compiled so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Torch's switches for it, which are the process's, inside of the block: with `"tf32"`, all are
    on. Otherwise that of convolutions and recurrent layers, which torch has on unless it is told,
    is off; that of matrix products is as it is."""
    allowed = precision == "tf32"
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with _ONE_AT_A_TIME:  # else one would find, and leave, what another one has set meanwhile
        convolving, multiplying = _allowed(cudnn), matmul.fp32_precision
        try:
            if convolving is not None:
                cudnn.allow_tf32 = allowed
            if allowed:
                matmul.fp32_precision = "tf32"
            yield
        finally:
            matmul.fp32_precision = multiplying
            if convolving is not None:
                cudnn.allow_tf32 = convolving


def _allowed(cudnn: Any) -> bool | None:
    """What the switch for all of cuDNN is; None where somebody has told its parts, which torch
    keeps apart: then it refuses to say, and what they were told is what is wanted."""
    try:
        return bool(cudnn.allow_tf32)
    except RuntimeError:
        return None
