"""ATen's operators on the emulated device: the CPU's, on the same memory.

Under capture an operator takes room for its results from torch's allocator, as CUDA's does, and
leaves its computing to the node that is launched later. So what a graph gives is right only if its
edges are, and if no memory is used again too early.
"""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

# What makes tensors and views of them, and launches nothing, stays torch's own.
_TORCHS_OWN = {
    *("empty.memory_format", "empty_strided", "as_strided", "view", "_reshape_alias", "unfold"),
    *("resize_", "set_", "set_.source_Storage", "set_.source_Storage_storage_offset"),
    *("set_.source_Tensor", "record_stream", "is_pinned", "_pin_memory", "_local_scalar_dense"),
    *("view_as_real", "view_as_complex", "is_set_to", "_efficientzerotensor"),
}
_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


class Emulator:
    """The calls of the emulated runtime that torch has no name for."""

    def __init__(self) -> None:
        self._runtime = ctypes.CDLL("libcudart.so.13")
        self._calls: dict[int, Callable[[], object]] = {}  # of captured kernels, kept for good
        self._numbers = count(1)
        self._launching: int | None = None  # a kernel that runs as it is launched
        self._refused: Exception | None = None
        self._run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)(self._compute)

    def capturing(self) -> bool:
        status = ctypes.c_int()
        self._runtime.cudaStreamIsCapturing(self._stream(), ctypes.byref(status))
        return status.value != 0

    def launch(self, name: str, call: Callable[[], object]) -> None:
        """Queue a kernel that does `call`."""
        number = next(self._numbers)
        self._calls[number] = call
        captured = self.capturing()
        self._launching = None if captured else number
        launch = self._runtime.emulated_kernel
        self._check(launch(self._stream(), name.encode(), self._run, ctypes.c_size_t(number)))
        if not captured:
            del self._calls[number]
            error, self._refused = self._refused, None
            if error is not None:
                raise error

    def _stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)

    def _compute(self, number: int) -> int:
        """One kernel. An index out of range is CUDA's device assert, which sticks; anything else
        an operator checks before it launches, where it is not captured."""
        try:
            with torch.inference_mode():
                self._calls[number]()
        except Exception as error:
            if isinstance(error, IndexError) or self._launching != number:
                traceback.print_exc()
                return 1
            self._refused = error
        return 0

    def _check(self, code: int) -> None:
        if code:
            self._runtime.cudaGetLastError()
            raise torch.AcceleratorError(f"CUDA error: {code} (emulated, see stderr)")


def on_host(value: Any) -> Any:
    """A tensor of the device as one of the CPU over the same memory; else `value` itself."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if not isinstance(value, torch.Tensor) or not value.is_cuda:
        return value
    shape, stride = value.shape, value.stride()
    if value.numel() == 0:
        return torch.empty_strided(shape, stride, dtype=value.dtype)
    reach = sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1
    memory = (ctypes.c_uint8 * (reach * value.element_size())).from_address(value.data_ptr())
    return torch.frombuffer(memory, dtype=torch.uint8).view(value.dtype).as_strided(shape, stride)


def _shape_only(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("meta")
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _on_device(like: Any) -> Any:
    if not isinstance(like, torch.Tensor):
        return like
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cuda")


def _tensors(value: Any) -> list[torch.Tensor]:
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _kernel(emulator: Emulator, op: torch._ops.OpOverload) -> Callable[..., Any]:
    arguments, returns = op._schema.arguments, len(op._schema.returns)
    written = [
        (at, a.name) for at, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write
    ]

    def call(*args: Any, **kwargs: Any) -> Any:
        _refuse_host(op, args, kwargs)
        if written:
            targets = [args[at] if at < len(args) else kwargs[name] for at, name in written]
            if any(isinstance(t, torch.Tensor) and t.numel() == 0 for t in targets):
                _make_room(op, targets, args, kwargs)
            given, named = tree_map(on_host, (args, kwargs))
            emulator.launch(str(op), lambda: op(*given, **named))
            return None if not returns else targets[0] if returns == 1 else tuple(targets)
        given, named = tree_map(on_host, (args, kwargs))
        if emulator.capturing():
            shapes, named_shapes = tree_map(_shape_only, (args, kwargs))
            out = tree_map(_on_device, op(*shapes, **named_shapes))
        else:
            out = tree_map(_on_device, op(*given, **named))
        rooms = [on_host(tensor) for tensor in _tensors(out)]

        def compute() -> None:
            found = _tensors(op(*given, **named))
            for at, (room, result) in enumerate(zip(rooms, found, strict=True)):
                # What comes after the first, bags' bookkeeping, has other shapes on a CPU.
                if at == 0 or room.shape == result.shape:
                    room.copy_(result)

        emulator.launch(str(op), compute)
        return out

    return call


def _refuse_host(op: torch._ops.OpOverload, args: Any, kwargs: Any) -> None:
    """As CUDA's kernels do: numbers may come from the host, and indices, and nothing else."""
    if op.overloadpacket in (torch.ops.aten.index, torch.ops.aten._index_put_impl_):
        return
    for value in tree_leaves((args, kwargs)):
        if isinstance(value, torch.Tensor) and not value.is_cuda and value.dim():
            raise RuntimeError(f"Expected all tensors to be on the same device: {op} got a CPU's")


def _make_room(
    op: torch._ops.OpOverload, targets: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Operators size the empty tensors that they are to write."""
    shapes, named_shapes = tree_map(_shape_only, (args, kwargs))
    for target, shaped in zip(targets, _tensors(op(*shapes, **named_shapes)), strict=True):
        if target.shape != shaped.shape:
            target.resize_(shaped.shape)


def _copy(emulator: Emulator) -> Callable[..., torch.Tensor]:
    """`copy_`: of dense tensors ATen's own, which asks the runtime for a copy; of others by a
    kernel, and from one side to the other by way of a dense tensor."""
    own = torch.library.get_kernel("aten::copy_", "CUDA")

    def copy_(self: torch.Tensor, src: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        crosses = self.is_cuda != src.is_cuda
        same = self.dtype == src.dtype and self.shape == src.shape
        if self.numel() == 0 or (same and self.is_contiguous() and src.is_contiguous()):
            own.call_boxed(_CUDA, self, src, non_blocking)
        elif not crosses:
            to, source = on_host(self), on_host(src)
            emulator.launch("aten.copy_", lambda: to.copy_(source))
        elif self.is_cuda:
            there = torch.empty(src.shape, dtype=src.dtype, device=self.device)
            self.copy_(there.copy_(src.contiguous()))
        else:
            there = torch.empty(self.shape, dtype=self.dtype, device=src.device).copy_(src)
            self.copy_(torch.empty(self.shape, dtype=self.dtype).copy_(there))
        return self

    return copy_


@contextmanager
def registered() -> Iterator[Emulator]:
    """Every operator of ATen that has a kernel for CUDA computes by the CPU's."""
    emulator = Emulator()
    library = torch.library.Library("aten", "IMPL")
    for full in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"):
        namespace, _, name = full.partition("::")
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
        if namespace == "aten" and name not in _TORCHS_OWN and op is not None:
            library.impl(name, _kernel(emulator, op), "CUDA")
    library.impl("copy_", _copy(emulator), "CUDA")
    torch.cuda._sleep = lambda cycles: emulator.launch("sleep", lambda: None)
    yield emulator
    del library
