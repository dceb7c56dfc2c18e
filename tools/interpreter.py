"""How threads of a process of our own share Python's interpreter."""

from __future__ import annotations

import atexit
import gc
import sys

SWITCH = 0.0005  # seconds that one thread keeps it while others wait; Python's own 5 ms


def prepare_for_load() -> None:
    """Call once, before artifacts are loaded, in a process that does nothing but serve.

    Lanes need the interpreter again after each replay, and a thread that never pauses, such as a
    sender that is behind, would have them wait 5 ms every time. What torch has loaded is never
    garbage, but a full collection walks over all of it: 90 ms in which nothing is answered, just
    when many requests wait. What is loaded afterwards, a version that is exchanged say, can go.
    """
    import torch  # noqa: F401

    sys.setswitchinterval(SWITCH)
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries look for leaks at the end
