"""A replay on the GPU beside the eager model on the CPU."""

import numpy as np
import torch

from recreplay.runtime import Runtime


def check(model: torch.nn.Module, runtime: Runtime, rows: int, seed: int) -> None:
    request = model.example_inputs(rows, seed=seed)
    with torch.inference_mode():
        want = model(**model.arguments(request))
    if isinstance(want, torch.Tensor):
        want = {"output": want}
    elif isinstance(want, tuple):
        want = {f"output_{i}": t for i, t in enumerate(want)}
    got = runtime.run({k: v.numpy() for k, v in request.items()})
    for name, tensor in want.items():
        np.testing.assert_allclose(got[name], tensor.numpy(), rtol=1e-4, atol=1e-5)
