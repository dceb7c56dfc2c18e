"""What the packages of a lane make and drop in a replay lies in memory that the lane keeps.

`workspace.h` of `recreplay.capture.compilers`, which is in the library beside the packages, says
why. One lane replays one request at a time, so its packages share the memory, as do its buckets.
"""

from __future__ import annotations

import ctypes
from _ctypes import dlclose
from pathlib import Path


class Workspace:
    """Empty until packages take from it; as large as the largest replay so far had to have it."""

    def __init__(self, library: Path) -> None:
        """`library`: that of launch.c. Raises MemoryError."""
        self._library = ctypes.CDLL(str(library))
        self._library.recreplay_workspace.restype = ctypes.c_void_p
        self.address = self._library.recreplay_workspace()
        if not self.address:
            dlclose(self._library._handle)
            raise MemoryError("no memory for the workspace of a lane")

    def close(self) -> None:
        """Free it. No package that was bound with it may run any more."""
        if self.address:
            self._library.recreplay_drop_workspace(ctypes.c_void_p(self.address))
            self.address = None
            dlclose(self._library._handle)
