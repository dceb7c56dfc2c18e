"""What libraries would tell a user that needs no doing, or that an error says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch.export import _trace


@contextmanager
def only_from(level: int, *names: str) -> Iterator[None]:
    """These loggers write what is of `level` and more; as before afterwards."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)


@contextmanager
def without_partial_graph() -> Iterator[None]:
    """torch.export prints what it has of a graph when it fails, twice; the error names the line.
    What a model and other threads write meanwhile stays."""
    vars(_trace)["print"] = lambda *said, **where: None
    try:
        with only_from(logging.ERROR, "torch.fx.experimental.symbolic_shapes"):
            yield
    finally:
        vars(_trace).pop("print", None)
