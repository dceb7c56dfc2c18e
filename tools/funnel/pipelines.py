"""Which funnels there are of some models: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from recreplay.runtime.errors import RecReplayError

_MOST = 200  # funnels of one run: each is measured on every query


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`stages` are places in the list of models, and `keeps` how many rows each but the last lets
    through."""

    stages: tuple[int, ...]
    keeps: tuple[int, ...]

    def describe(self, names: Sequence[str]) -> str:
        return " → ".join(
            f"{names[at]} {keep}" if keep else names[at]
            for at, keep in zip(self.stages, (*self.keeps, 0), strict=True)
        )


def pipelines(models: int, items: int, keeps: Sequence[int], top: int) -> list[Pipeline]:
    """The last model alone, and behind every choice of those before it, in their order, for all
    numbers of rows from `keeps` that fall from stage to stage: as RecPipe sweeps them.

    `items` are ranked, and `top` of them are asked for. Raises RecReplayError where there are none
    but the first, or too many.
    """
    useful = sorted({keep for keep in keeps if top <= keep < items}, reverse=True)
    found = [*_all(models, useful)]
    if models > 1 and len(found) == 1:
        raise RecReplayError(
            f"--keep {', '.join(map(str, keeps))}: no stage can keep that; expected {top} (--top) "
            f"or more, and fewer than {items} (--items)"
        )
    if len(found) > _MOST:
        raise RecReplayError(
            f"{models} models and {len(useful)} numbers of rows make {len(found)} funnels; at most "
            f"{_MOST} are measured in one run; give fewer to --keep"
        )
    return found


def _all(models: int, keeps: Sequence[int]) -> Iterator[Pipeline]:
    last = models - 1
    for before in range(models):
        for chosen in combinations(range(last), before):
            for kept in combinations(keeps, before):  # falling, as `keeps` is
                yield Pipeline((*chosen, last), kept)
