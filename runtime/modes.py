"""What callers switch on for torch in their thread, and a runtime must not be loaded under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_modes() -> Iterator[None]:
    """torch as it is by default: weights that are loaded can be written later (under
    `inference_mode` they could not), are where they are said to be (and not on what
    `set_default_device` says), and operators compute what was captured (without `autocast`)."""
    with (
        torch.inference_mode(False),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield
