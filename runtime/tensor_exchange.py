"""What DLPack says of arrays, and how C reads torch's tensors: through the table of functions that
DLPack lets a type carry.

`torch.Tensor.__dlpack_c_exchange_api__` names a function that says where a tensor's memory is and
how it is laid out, without an object being made for it. Where a torch has no such table, or one of
another major version, tensors are brought to numpy one by one.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

_NAME = b"dlpack_exchange_api"
_MAJOR = 1  # of DLPack: the one whose structures are known here
_CUDA = 2  # kDLCUDA
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLDataTypeCode, by the kind of a numpy dtype


class _Table(ctypes.Structure):
    """`DLPackExchangeAPI` of dlpack.h."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("export", ctypes.c_void_p),
        ("from_exported", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    )


def dlpack_type(dtype: np.dtype[np.generic]) -> tuple[int, int]:
    """Code and bits of a dtype, as DLPack has them."""
    return _CODES[dtype.kind], 8 * dtype.itemsize


def gpu_of(value: Any) -> int | None:
    """The number of the CUDA device that an array of another library lies on, by its own account;
    None of what is elsewhere."""
    where = getattr(value, "__dlpack_device__", None)
    if where is None or isinstance(value, np.ndarray):
        return None
    kind, index = where()
    return int(index) if int(kind) == _CUDA else None


def tensor_reader() -> int | None:
    """The address of the C function that fills in a `DLTensor` from a `torch.Tensor`; None where
    torch has none that is known here."""
    import torch

    capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return None
    # A prototype of our own: what is set on `pythonapi` itself is set for everybody.
    prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    pointer = prototype(("PyCapsule_GetPointer", ctypes.pythonapi))
    table = _Table.from_address(pointer(capsule, _NAME))
    return table.read if table.major == _MAJOR else None
