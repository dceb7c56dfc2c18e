"""Train the three models of RecPipe on a generated log of clicks, capture them, and write queries:

    python examples/funnel.py OUT
    recreplay funnel OUT/small.rr OUT/med.rr OUT/large.rr --inputs OUT/queries.npz --labels click

Takes about two minutes. Tables are a thousandth of Criteo's.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recreplay.capture import capture
from recreplay.models import Ranker, clicks, rm_large, rm_med, rm_small

ROWS_SCALE = 0.001
TRAINED, ITEMS, QUERIES = 400_000, 4096, 48
KEEPS = [128, 256, 512, 1024]  # rows that a stage may let through: buckets of the one behind it


def train(factory: Callable[..., Ranker], log: dict[str, Tensor]) -> Ranker:
    """One epoch, as RecPipe trains."""
    torch.manual_seed(0)
    model = factory(rows_scale=ROWS_SCALE).requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.004)
    labels = log["click"]
    for rows in torch.randperm(len(labels)).split(512):
        batch = {name: column[rows] for name, column in log.items() if name != "click"}
        score = model(**model.arguments(batch))[:, 0]
        loss = F.binary_cross_entropy(score.clamp(1e-6, 1 - 1e-6), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.requires_grad_(False)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    log = clicks(TRAINED, seed=1, rows_scale=ROWS_SCALE)
    for name, factory in (("small", rm_small), ("med", rm_med), ("large", rm_large)):
        model = train(factory, log)
        # Tuned, so that who ranks all items does so in parts that suit the caches.
        capture(
            model,
            out=out / f"{name}.rr",
            buckets=[*KEEPS, ITEMS],
            tune="quick",
            overwrite=True,
        )
        print(f"{name}: trained and captured", flush=True)
    queries = clicks(ITEMS * QUERIES, seed=2, rows_scale=ROWS_SCALE)
    np.savez(out / "queries.npz", **{name: column.numpy() for name, column in queries.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
