"""What calls have spent, and waited for Python's lock: `struct lock` of lock.h."""

from __future__ import annotations

import ctypes


class LockTimes(ctypes.Structure):
    """Nanoseconds on the average; the last part of the structs of launch.c."""

    _fields_ = (
        ("spent", ctypes.c_int64),
        ("waited", ctypes.c_int64),
        ("calls", ctypes.c_int64),
    )
