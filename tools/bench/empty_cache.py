"""Captures of a benchmark take what a first capture takes, whatever earlier ones kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from recreplay.tools.files import temporary_folder

_VARIABLE = "XDG_CACHE_HOME"  # of this process and of those that it starts


@contextmanager
def empty_cache() -> Iterator[None]:
    """Meanwhile, captures find neither packages nor measurements of before, and leave none."""
    before = os.environ.get(_VARIABLE)
    with temporary_folder() as folder:
        os.environ[_VARIABLE] = str(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before
