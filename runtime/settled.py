"""What integers and flags of a model are, by whose values it was captured."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def digest(values: torch.Tensor) -> str:
    """The same for the same numbers in the same shape, of whatever type and on whatever device."""
    import torch

    numbers = values.detach().to("cpu", torch.int64).contiguous().numpy()
    return hashlib.sha256(f"{numbers.shape}".encode() + numbers.tobytes()).hexdigest()
