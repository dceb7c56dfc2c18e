"""The three Criteo models of RecPipe, which its multi-stage pipelines chain: small, medium, large.

Source: RecPipe (arXiv 2105.08820), configurations `dim_4`, `dim_16` and `dim_32`. All are DLRMs
with dot interaction, 13 dense inputs and 26 tables with one lookup each. RecPipe takes the number
of rows from its data file; `CRITEO_ROWS` are the counts of the Criteo Kaggle set as the
DLRM scripts list them.
"""

from __future__ import annotations

from collections.abc import Sequence

from .dlrms import Dlrm, dlrm

# fmt: off
CRITEO_ROWS: tuple[int, ...] = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)
# fmt: on


def rm_small(*, rows_scale: float = 1.0, seed: int = 0) -> Dlrm:
    """RM-small: 26 tables x 4, bottom 13-64-4, top 355-64-1, 0.54 GB; output `[B, 1]`."""
    return _criteo(4, (64, 4), (64, 1), rows_scale, seed)


def rm_med(*, rows_scale: float = 1.0, seed: int = 0) -> Dlrm:
    """RM-med: 26 tables x 16, bottom 13-64-16, top 367-64-1, 2.16 GB; output `[B, 1]`."""
    return _criteo(16, (64, 16), (64, 1), rows_scale, seed)


def rm_large(*, rows_scale: float = 1.0, seed: int = 0) -> Dlrm:
    """RM-large: 26 tables x 32, bottom 13-512-256-128-64-32, top 383-96-1, 4.32 GB; `[B, 1]`."""
    return _criteo(32, (512, 256, 128, 64, 32), (96, 1), rows_scale, seed)


def _criteo(
    dim: int, bottom: Sequence[int], top: Sequence[int], rows_scale: float, seed: int
) -> Dlrm:
    return dlrm(
        rows=CRITEO_ROWS,
        lookups=1,
        dim=dim,
        dense=13,
        bottom=bottom,
        top=top,
        interaction="dot",
        rows_scale=rows_scale,
        seed=seed,
    )
