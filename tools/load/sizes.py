"""How many items a query asks to rank: the distributions of the DeepRecSys line of work."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from recreplay.runtime.errors import RecReplayError
from recreplay.tools.query_sizes import LARGEST, MOST, Draw, kairos, lognormal, normal, whole

FORMS = "fixed:N, normal:MEAN,STD, lognormal:MU,SIGMA, kairos or file:PATH"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Draws one size at a time; none is above `most`."""

    draw: Draw
    most: int

    def __call__(self, rng: np.random.Generator) -> int:
        return int(self.draw(rng, 1)[0])


def parse_sizes(text: str) -> Sizes:
    """What draws the sizes that a distribution, a number or a file of sizes names.

    `normal:165,16` and `lognormal:5.1,0.2` are those of DeepRecSys and `kairos` is the mixture of
    Kairos (`recreplay.tools.query_sizes` has the sources), all cut to `[1, 1024]` as there. A file
    has a size a line. What is given as a number is taken as it is, or refused.
    """
    kind, _, rest = text.partition(":")
    try:
        if kind == "fixed":
            return fixed(int(rest))
        if kind in ("normal", "lognormal"):
            a, b = _two(rest)
            return _cut(normal(a, b) if kind == "normal" else lognormal(a, b))
        if kind == "kairos" and not rest:
            return _cut(kairos)
        if kind == "file":
            found = [int(line) for line in Path(rest).read_text().split()]
            if not found:
                raise ValueError("the file is empty")
            for size in (min(found), max(found)):
                check_size(size)
            traced = np.array(found)
            return Sizes(lambda rng, count: rng.choice(traced, count), max(found))
    except (ValueError, OSError) as error:
        raise RecReplayError(f"sizes {text!r}: {error}; expected {FORMS}") from error
    raise RecReplayError(f"sizes {text!r}; expected {FORMS}")


def fixed(rows: int) -> Sizes:
    """Every query alike."""
    check_size(rows)
    return Sizes(lambda rng, count: np.full(count, rows), rows)


def check_size(rows: int) -> None:
    if not 1 <= rows <= MOST:
        raise ValueError(f"a size of {rows} rows is not in the range 1 to {MOST}")


def largest(sizes: Sizes, seed: int = 0, count: int = 4096) -> int:
    """The largest of many drawn sizes."""
    draw = np.random.default_rng(seed)
    return max(sizes(draw) for _ in range(count))


def _two(text: str) -> tuple[float, float]:
    """Where the distribution is, and how wide: numbers that something can be drawn from."""
    found = [float(part) for part in text.split(",")]
    if len(found) != 2:
        raise ValueError(f"expected two numbers, got {len(found)}")
    if not all(isfinite(number) for number in found) or found[1] < 0:
        raise ValueError("both have to be finite, and the second 0 or more")
    return found[0], found[1]


def _cut(draw: Draw) -> Sizes:
    """A distribution has no ends of its own, so its sizes are cut to those of DeepRecSys."""
    return Sizes(lambda rng, count: whole(draw(rng, count)), LARGEST)
