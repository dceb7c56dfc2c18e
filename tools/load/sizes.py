"""How many items a query asks to rank: the distributions of the DeepRecSys line of work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from recreplay.runtime.errors import RecReplayError
from recreplay.tools.query_sizes import Draw, kairos, lognormal, normal, whole

FORMS = "fixed:N, normal:MEAN,STD, lognormal:MU,SIGMA, kairos or file:PATH"
Sizes = Callable[[np.random.Generator], int]


def parse_sizes(text: str) -> Sizes:
    """A distribution by its name: what draws one size in `[1, 1024]`.

    `normal:165,16` and `lognormal:5.1,0.2` are those of DeepRecSys, `kairos` is the mixture of
    Kairos (`recreplay.tools.query_sizes` has the sources), and a file has a size a line.
    """
    kind, _, rest = text.partition(":")
    try:
        if kind == "fixed":
            return _one(lambda draw, count, n=int(rest): np.full(count, n))  # type: ignore[misc]
        if kind in ("normal", "lognormal"):
            a, b = (float(part) for part in rest.split(","))
            return _one(normal(a, b) if kind == "normal" else lognormal(a, b))
        if kind == "kairos" and not rest:
            return _one(kairos)
        if kind == "file":
            traced = np.array([int(line) for line in Path(rest).read_text().split()])
            if not traced.size:
                raise ValueError("the file is empty")
            return _one(lambda draw, count: draw.choice(traced, count))
    except (ValueError, OSError) as error:
        raise RecReplayError(f"sizes {text!r}: {error}; expected {FORMS}") from error
    raise RecReplayError(f"sizes {text!r}; expected {FORMS}")


def largest(sizes: Sizes, seed: int = 0, count: int = 4096) -> int:
    """The largest of many drawn sizes."""
    draw = np.random.default_rng(seed)
    return max(sizes(draw) for _ in range(count))


def _one(draw: Draw) -> Sizes:
    """One size at a time of a distribution that draws many."""
    return lambda rng: int(whole(draw(rng, 1))[0])
