"""The two ways that torch's layers of attention have, of which an export has one.

The fast one, without gradients in eval mode, gives zeros where items are padding if the rows of a
request are all padded on the right, and so other answers to a row beside other rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

_LAYERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
_SAME = 1e-3  # of the largest size of an output: both ways round otherwise


@contextmanager
def attention_as_exported() -> Iterator[None]:
    """Layers of attention go the way that an export has."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def fast_path_note(
    model: nn.Module,
    run: Callable[[], Mapping[str, torch.Tensor]],
    produced: Mapping[str, torch.Tensor],
) -> str | None:
    """What is to be said where `run()` of a model gives something else than `produced` by layers of
    attention as they are exported."""
    if not any(isinstance(module, _LAYERS) for module in model.modules()):
        return None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own nested tensors
        fast = run()
    for name, value in fast.items():
        own = produced[name]
        if not own.is_floating_point():
            continue
        largest = float(own.nan_to_num().abs().amax()) if own.numel() else 0.0
        if not torch.allclose(value, own, rtol=_SAME, atol=_SAME * largest, equal_nan=True):
            far = float((value - own).nan_to_num().abs().amax())
            return (
                f"output {name!r} of the example differs by {far:.3g} from what the model gives by "
                "the fast path of torch's attention layers, which gives zeros where items are "
                "padding. Captured is the other path, that of training; where nothing reads the "
                "outputs of padding, both are the same"
            )
    return None
