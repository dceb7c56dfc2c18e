"""Run the model itself on a request that capture made up, or say why it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from recreplay.capture.ingest import Ingested
from recreplay.runtime.errors import CaptureError, UnsupportedModelError
from recreplay.runtime.tf32 import products_in

Array = np.ndarray[Any, Any]


def run_eager(model: Ingested, inputs: Mapping[str, torch.Tensor], rows: int) -> dict[str, Array]:
    """The outputs of the model for `inputs` as it takes them: user inputs once per row."""
    device = next(iter(model.example.values())).device
    names = [spec.name for spec in model.inputs if spec.name in inputs]
    count = f"{rows} row{'s'[: rows != 1]}"
    try:
        with products_in("fp32"):
            outputs = model.eager({name: inputs[name].to(device) for name in names})
    except Exception as error:
        raise CaptureError(
            f"the model itself fails on a request of {count} made of its example inputs: "
            f"{type(error).__name__}: {error}. It has to take any number of rows, one too, each "
            "value of a column of the example beside any of other columns, and ids from all of "
            "a table; take out of the example what it cannot, or clamp ids that it computes"
        ) from error
    for spec in model.outputs:
        got = tuple(outputs[spec.name].shape) if spec.name in outputs else None
        if got != (rows, *spec.row):
            raise UnsupportedModelError(
                f"output {spec.name!r} has shape {got} for {count}; expected "
                f"{(rows, *spec.row)}, one row per row of the inputs"
            )
    return {name: value.detach().cpu().numpy() for name, value in outputs.items()}
