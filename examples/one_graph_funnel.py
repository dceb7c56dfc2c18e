"""A funnel as one graph: a small model ranks all candidates of a request, a large one the best of
them, and nothing goes to the host in between.

    python examples/one_graph_funnel.py funnel.rr [cpu | cuda]

`recreplay.runtime.Funnel` does the same with an artifact for each stage: any number of them, on
devices of their own, whose requests are packed and cut. One graph saves what lies between two
stages, and is made for one `keep` of each.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recreplay.capture import capture
from recreplay.models import rm_large, rm_small
from recreplay.runtime import Runtime

ROWS_SCALE = 0.001
ITEMS, KEEP, ANSWER = 4096, 512, 64


def best(scores: Tensor, real: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Places `[keep]` of the largest `scores` `[n]`, best first, and which of them are `real`: rows
    that pad a request come last, behind scores that are NaN. Equal ones are ranked as they come."""
    n = scores.shape[0]
    least = scores.masked_fill(~real | scores.isnan(), -torch.inf)
    order = torch.argsort(least, descending=True, stable=True)
    places = torch.arange(keep, device=scores.device)
    return order[places.clamp(max=n - 1)], places < real.sum()


class OneGraphFunnel(nn.Module):
    """The best rows of a request, `[n]`: their numbers, -1 behind the last, and their scores."""

    def __init__(self, small: nn.Module, large: nn.Module) -> None:
        super().__init__()
        self.small, self.large = small, large

    def forward(self, dense: Tensor, ids: list[Tensor], mask: Tensor) -> dict[str, Tensor]:
        left, real = best(self.small(dense, ids)[:, 0], mask, KEEP)
        scores = self.large(dense[left], [column[left] for column in ids])[:, 0]
        order, real = best(scores, real, ANSWER)
        # Outputs have as many rows as a request.
        places = torch.arange(mask.shape[0], device=mask.device)
        at = places.clamp(max=ANSWER - 1)
        there = real[at] & (places < ANSWER)
        return {
            "rows": torch.where(there, left[order][at], -1),
            "scores": torch.where(there, scores[order][at], 0.0),
        }

    def example_inputs(self, batch: int) -> dict[str, Tensor]:
        drawn: dict[str, Tensor] = self.small.example_inputs(batch)
        return drawn | {"mask": torch.ones(batch, dtype=torch.bool)}


def build() -> OneGraphFunnel:
    """For `recreplay capture examples/one_graph_funnel.py:build --row-mask mask`."""
    return OneGraphFunnel(rm_small(rows_scale=ROWS_SCALE), rm_large(rows_scale=ROWS_SCALE)).eval()


def main(out: Path, device: str) -> None:
    model = build()
    capture(model, out=out, buckets=[1024, ITEMS], row_mask="mask", device=device, overwrite=True)
    with Runtime.load(out) as runtime:
        request = {k: v.numpy() for k, v in model.example_inputs(3000).items() if k != "mask"}
        found = runtime.run(request)
        for row, score in zip(found["rows"][:5], found["scores"][:5], strict=True):
            print(f"candidate {row}: {score:.4f}")
        assert np.all(np.diff(found["scores"][:ANSWER]) <= 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "cpu")
