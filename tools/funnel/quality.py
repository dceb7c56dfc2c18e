"""How good a ranking is, as RecPipe counts it (arXiv 2105.08820, `utils.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def ndcg(labels: Array, top: int) -> float:
    """NDCG@`top` of labels 0 and 1 in the order of a ranking: discounted by log2(i + 2), over that
    of as many positives, whether or not the query has them."""
    gains = 1 / np.log2(np.arange(top) + 2.0)
    ranked = np.asarray(labels[:top], np.float64)
    return float((ranked * gains[: len(ranked)]).sum() / gains.sum())


def overlap(rows: Array, wanted: Array) -> float:
    """The share of `wanted` rows that are among `rows`."""
    return float(np.isin(wanted, rows).mean())
