"""Functions of a C library as builtins of Python's own, called without ctypes.

A call through ctypes takes 450 ns where a builtin takes 130, and more once a replay has driven what
it reads out of the caches: descriptions of arguments, converters, and libffi with all of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

NO_ARGUMENT, ONE_ARGUMENT = 0x0004, 0x0008  # METH_NOARGS and METH_O of Python's methodobject.h


class _Method(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def builtin(
    function: Any, arguments: int, struct: ctypes.Structure, kept: object = None
) -> Callable[..., Any]:
    """`function` of a library, bound to `struct`.

    In C it is `PyObject *function(PyObject *self, PyObject *argument)`, where `self` is a tuple
    that begins with the address of `struct`. What is made keeps `struct`, and `kept`, to which it
    points; it may outlive the library, but must not be called then.
    """
    name = str(function.__name__).encode()
    method = _Method(name, ctypes.cast(function, ctypes.c_void_p), arguments, None)
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p]
    # Python reads the method as long as `self` lives, which therefore keeps it.
    bound = (ctypes.addressof(struct), struct, method, kept)
    made: Callable[..., Any] = new(ctypes.addressof(method), bound, None)
    return made
