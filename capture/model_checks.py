"""What a model is not to be, found before it is run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recreplay.runtime.errors import CaptureError, UnsupportedModelError

# Wrappers, and what they keep the model as.
_WRAPPED = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}


def check_model(model: Any) -> None:
    """Raise CaptureError for what is no module in eval mode, or hides one."""
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{kind} is a module of TorchScript, which torch.export does not take; capture the "
            "nn.Module that it was made of"
        )
    if not isinstance(model, nn.Module):
        named = f"the {kind} {model.__name__!r}" if hasattr(model, "__name__") else f"a {kind}"
        raise CaptureError(
            f"the model is {named}; expected an nn.Module, such as one that it makes, or an "
            "ExportedProgram"
        )
    if kind in _WRAPPED:
        raise CaptureError(
            f"the model is wrapped in {kind}; capture what is in it, model.{_WRAPPED[kind]}"
        )
    for name, module in model.named_modules():
        if module.training:
            which = f"module {name!r} of {kind}" if name else kind
            raise CaptureError(
                f"{which} is in training mode, where dropout and batch statistics are not a "
                "function of the inputs alone; call model.eval() first"
            )
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise UnsupportedModelError(
                f"table {name or kind!r} has max_norm={module.max_norm}, by which every lookup "
                "writes into it; scale its rows once, by torch.renorm(weight, norm_type, 0, "
                "max_norm), and set max_norm to None"
            )
