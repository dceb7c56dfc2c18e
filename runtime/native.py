"""AOTInductor packages called through their C interface, without the interpreter lock.

torch's own loader holds the lock for the whole call, so that lanes in threads take turns. Measured
on two cores, 26 tables: two threads replay 1.0 times what one does through the loader and 2.0 times
through here; one call takes 33 µs instead of 34. Lanes in processes would need 48 µs to hand over a
request and back, and their own copy of torch. A call keeps the
lock where it waits three times as long to have it back, behind other lanes or whatever else runs
Python: two threads that replay 10 us answer 33,000 requests a second if they always let go, and
56,000 so.

The C interface is `torch/csrc/inductor/aoti_runtime/interface.h`; a library beside the packages
(`launch.c` in `recreplay.capture.compilers`) makes it one call.
"""

from __future__ import annotations

import ctypes
from _ctypes import dlclose
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from recreplay.runtime.artifact import LAUNCHER
from recreplay.runtime.builtin_call import NO_ARGUMENT, builtin
from recreplay.runtime.errors import ArtifactCorruptError
from recreplay.runtime.lock_times import LockTimes
from recreplay.runtime.workspace import Workspace

_MAX_ALIVE = 1  # model instances of a container; each lane has containers of its own


class _Call(ctypes.Structure):
    """`struct recreplay_call` of launch.c."""

    _fields_ = (
        ("clone", ctypes.c_void_p),
        ("run", ctypes.c_void_p),
        ("container", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("sources", ctypes.c_void_p),
        ("handles", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("lock", LockTimes),
    )


@cache
def _torch() -> ctypes.PyDLL:
    """torch's C functions, called with the interpreter lock held: they take nanoseconds."""
    return ctypes.PyDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


def _pointer_of(capsule: object, name: None) -> int:
    of = ctypes.pythonapi.PyCapsule_GetPointer
    of.restype, of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(of(capsule, name))


def native_library(folder: Path) -> Path | None:
    """The library of a package that can be called this way, or None.

    A package that calls operators without a C function needs torch's loader, which says so by a
    JSON file beside the library.
    """
    library = next(folder.rglob("*.so"), None)
    if library is None:
        raise ArtifactCorruptError(f"{folder} holds no compiled library; capture the model again")
    return None if library.with_suffix(".json").exists() else library


class NativePackage:
    """One package on the CPU. Bound calls release the interpreter lock, unless
    that costs more."""

    def __init__(self, folder: Path, library: Path, workspace: Workspace) -> None:
        self._name = folder.name
        self._workspace = workspace
        self._launcher = ctypes.CDLL(str(folder.parent.parent / LAUNCHER))
        self._library = ctypes.CDLL(str(library))
        self._container = ctypes.c_void_p()
        self._sources: list[ctypes.c_void_p] = []
        code = self._library.AOTInductorModelContainerCreateWithDevice(
            ctypes.byref(self._container),
            ctypes.c_size_t(_MAX_ALIVE),
            b"cpu",
            str(library.parent).encode(),
        )
        if code:
            raise ArtifactCorruptError(
                f"{library} cannot be loaded (code {code}, what it said is on stderr); capture "
                "the model again"
            )

    def bind(
        self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> Callable[[], object]:
        tensors = [*inputs, *outputs]
        sources = [_handle(t) for t in tensors]
        self._sources += sources
        addresses = (ctypes.c_void_p * len(sources))(*[s.value for s in sources])
        handles = (ctypes.c_void_p * len(sources))()
        run = self._library.AOTInductorModelContainerRunSingleThreaded
        call = _Call(
            ctypes.cast(_torch().aoti_torch_new_tensor_handle, ctypes.c_void_p),
            ctypes.cast(run, ctypes.c_void_p),
            self._container,
            self._workspace.address,
            ctypes.addressof(addresses),
            ctypes.addressof(handles),
            len(sources),
            self._name.encode(),
        )
        kept = (tensors, addresses, handles)  # what the call points to
        return builtin(self._launcher.recreplay_launch, NO_ARGUMENT, call, kept)

    def close(self) -> None:
        """Free what torch holds for it, and let go of the libraries, which the loader counts."""
        if not self._container:
            return
        for source in self._sources:
            _torch().aoti_torch_delete_tensor_object(source)
        self._sources.clear()
        self._library.AOTInductorModelContainerDelete(self._container)
        self._container = ctypes.c_void_p()
        for library in (self._library, self._launcher):
            dlclose(library._handle)


def _handle(tensor: torch.Tensor) -> ctypes.c_void_p:
    """A handle over the tensor's memory, which the caller keeps alive."""
    lib = _torch()
    if tensor.is_mkldnn:  # its layout is oneDNN's own, so the tensor itself is handed over
        capsule = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(tensor)
        return ctypes.c_void_p(_pointer_of(capsule, None))
    dims = tensor.dim()
    handle = ctypes.c_void_p()
    code = lib.aoti_torch_create_tensor_from_blob(
        ctypes.c_void_p(tensor.data_ptr()),
        ctypes.c_int64(dims),
        (ctypes.c_int64 * max(dims, 1))(*tensor.shape),
        (ctypes.c_int64 * max(dims, 1))(*tensor.stride()),
        ctypes.c_int64(0),
        getattr(lib, f"aoti_torch_dtype_{str(tensor.dtype).removeprefix('torch.')}")(),
        lib.aoti_torch_device_type_cpu(),
        ctypes.c_int32(0),
        ctypes.byref(handle),
    )
    if code:
        raise RuntimeError(f"torch refused a handle to {tuple(tensor.shape)} (code {code})")
    return handle
