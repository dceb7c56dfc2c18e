"""How threads of this process share Python's interpreter."""

from __future__ import annotations

import sys

SWITCH = 0.0005  # seconds that one thread keeps it while others wait; Python's own 5 ms


def hand_on_sooner() -> None:
    """For processes that are ours: lanes need the interpreter again after each replay, and a thread
    that never pauses, such as a sender that is behind, would have them wait 5 ms every time."""
    sys.setswitchinterval(SWITCH)
