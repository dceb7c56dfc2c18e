"""How many items a query asks to rank: the distributions of the DeepRecSys line of work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from recreplay.runtime.errors import RecReplayError

LARGEST = 1024  # items; `max_mini_batch_size` of DeepRecSys, to which its sizes are clipped
FORMS = "fixed:N, normal:MEAN,STD, lognormal:MU,SIGMA, kairos or file:PATH"
Sizes = Callable[[np.random.Generator], int]


def parse_sizes(text: str) -> Sizes:
    """A distribution by its name: what draws one size in `[1, 1024]`.

    `normal:165,16` and `lognormal:5.1,0.2` are those of DeepRecSys (its scripts), `kairos` is the
    mixture by which Kairos (HPDC'23, `helper.py`) replays its trace, and a file has a size a line.
    """
    kind, _, rest = text.partition(":")
    try:
        if kind == "fixed":
            return _clipped(lambda draw, n=int(rest): n)  # type: ignore[misc]
        if kind in ("normal", "lognormal"):
            a, b = (float(part) for part in rest.split(","))
            if kind == "normal":
                return _clipped(lambda draw: draw.normal(a, b))
            return _clipped(lambda draw: draw.lognormal(a, b))
        if kind == "kairos" and not rest:
            return _clipped(_kairos)
        if kind == "file":
            traced = np.array([int(line) for line in Path(rest).read_text().split()])
            if not traced.size:
                raise ValueError("the file is empty")
            return _clipped(lambda draw: draw.choice(traced))
    except (ValueError, OSError) as error:
        raise RecReplayError(f"sizes {text!r}: {error}; expected {FORMS}") from error
    raise RecReplayError(f"sizes {text!r}; expected {FORMS}")


def largest(sizes: Sizes, seed: int = 0, count: int = 4096) -> int:
    """The largest of many drawn sizes."""
    draw = np.random.default_rng(seed)
    return max(sizes(draw) for _ in range(count))


def _clipped(raw: Callable[[np.random.Generator], float]) -> Sizes:
    return lambda draw: int(min(LARGEST, max(1, raw(draw))))


def _kairos(draw: np.random.Generator) -> float:
    base = draw.lognormal(5.1, 0.2)
    r = draw.integers(1, 100)
    if r <= 8:
        return float(draw.integers(1, 100))
    if r <= 30:
        return float(draw.integers(200, 600))
    if r <= 35:
        return float(draw.integers(600, 1000))
    return float(base if 100 <= base <= 200 else draw.integers(190, 200))
