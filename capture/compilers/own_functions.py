"""Our own CPU operators in packages: each is a call of a C++ function, which is linked to it.

AOTInductor calls a custom operator by a C function if it is told the function's declaration, and
copies that into the package's source. The function itself is a part of the package, so that nothing
has to be loaded beside it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import fx

from recreplay.runtime.aten import (
    ATTENTION,
    BYTE_BAGS,
    GRU,
    JAGGED_BAGS,
    LSTM,
    PACKED_LINEAR,
    ROW_BAGS,
    TOP_K,
    WEIGHTED_BAGS,
    resolve,
)

_SOURCES = {
    PACKED_LINEAR: "packed_linear.cpp",
    BYTE_BAGS: "byte_bags.cpp",
    ROW_BAGS: "row_bags.cpp",
    WEIGHTED_BAGS: "weighted_bags.cpp",
    JAGGED_BAGS: "jagged_bags.cpp",
    TOP_K: "top_k.cpp",
    GRU: "gru.cpp",
    LSTM: "lstm.cpp",
    ATTENTION: "attention.cpp",
}
_SIGNATURE = re.compile(r"^RECREPLAY_CALLED\n(AOTITorchError (\w+)\([^)]*\)) {$", re.MULTILINE)
_SHIMS = "aot_inductor.custom_ops_to_c_shims"


class OwnFunctions:
    """Made once in a process that compiles, after which inductor can compile the operators."""

    def __init__(self, threads: int, columns: int) -> None:
        """`threads`: how many a call runs on, as the loops that inductor writes; `columns`: of a
        block of a packed weight."""
        self._sizes = {"THREADS": threads, "COLUMNS": columns}
        self._declarations: dict[str, str] = {}
        for target, source in _SOURCES.items():
            (signature,) = _SIGNATURE.finditer(_path(source).read_text())
            self._declarations[target] = signature[1]
            _register(resolve(target), signature[2])

    def declarations(self, targets: set[str]) -> dict[str, Any]:
        """Settings of inductor for code that calls these operators, among others."""
        used = {
            _out(resolve(target)): [text]
            for target, text in self._declarations.items()
            if target in targets
        }
        return {_SHIMS: used} if used else {}

    def sources(self, targets: set[str]) -> list[str]:
        """What defines the functions that such code calls, each by itself."""
        sizes = "".join(f"#define RECREPLAY_{n} {value}\n" for n, value in self._sizes.items())
        used = [source for target, source in _SOURCES.items() if target in targets]
        return [f'{sizes}#include "{_path(source)}"\n' for source in used]


def _path(source: str) -> Path:
    return Path(__file__).with_name(source)


def _out(operator: Any) -> Any:
    """The overload that writes into a tensor that it is given."""
    return operator.overloadpacket.out


def _register(operator: Any, function: str) -> None:
    from torch._inductor import ir
    from torch._inductor.lowering import register_lowering
    from torch._inductor.utils import convert_shape_to_inductor
    from torch._inductor.virtualized import V

    class Into(ir.ExternKernelOut):
        """A call that writes into what the segment was given to write to."""

        def __init__(self, written: Any, **call: Any) -> None:
            self._written = written
            nowhere: Any = ir.NoneLayout(device=written.get_device())  # of its own
            super().__init__(layout=nowhere, **call)
            V.graph.mark_buffer_mutated(written.get_name())

        def codegen_reference(self, writer: Any = None) -> str:
            return str(self._written.codegen_reference())

        def get_mutation_names(self) -> list[str]:
            return [self._written.get_name()]

        def should_allocate(self) -> bool:
            return False

    if operator is resolve(ATTENTION):  # which reads heads, and masks that repeat, as they lie
        lay: Any = _values_together
    else:
        lay = ir.ExternKernel.require_contiguous

    @register_lowering(operator, type_promotion_kind=None)
    def call(*arguments: Any) -> Any:
        """Tensors come first, of which the last may be None; then numbers."""
        tensors = [a for a in arguments if isinstance(a, ir.IRNode)]
        of: dict[str, Any] = {
            "inputs": [lay(ir.ExternKernel.realize_input(t)) for t in tensors],
            "constant_args": list(arguments[len(tensors) :]),
            "python_kernel_name": f"torch.ops.{_out(operator)}",
            "cpp_kernel_name": function,
            "op_overload": _out(operator),
        }
        node = V.graph.current_node
        buffer = _only_copied_to(node)
        if buffer is not None:
            written = V.graph.env[buffer]
            Into(written, **of)
            return written  # inductor leaves out a copy of a tensor to itself
        result = node.meta["val"]
        size = convert_shape_to_inductor(result.shape)
        # Rows of a matrix may lie apart, inside of a wider result such as a concatenation.
        layout = ir.FlexibleLayout if len(size) == 2 else ir.FixedLayout
        made = ir.ExternKernelOut(layout=layout(result.device, result.dtype, size), **of)
        return ir.TensorBox.create(made)


def _values_together(tensor: Any) -> Any:
    """The same, with the last dimension without gaps."""
    from torch._inductor import ir

    if ir.is_storage_and_layout(tensor) and tensor.get_size()[-1] != 1:
        _, layout = ir.as_storage_and_layout(tensor, freeze=True)
        if layout.stride[-1] == 1:
            return tensor
    return ir.ExternKernel.require_contiguous(tensor)


def _only_copied_to(node: fx.Node) -> fx.Node | None:
    """The argument of a segment to which the value of `node` is copied, if all of it is and nothing
    else reads it."""
    if len(node.users) != 1:
        return None
    (copy,) = node.users
    if copy.target is not torch.ops.aten.copy_.default or copy.args[1] is not node:
        return None
    buffer = copy.args[0]
    assert isinstance(buffer, fx.Node)
    value, argument = node.meta["val"], buffer.meta["val"]
    alike = all(getattr(value, a) == getattr(argument, a) for a in ("shape", "dtype", "device"))
    return buffer if buffer.op == "placeholder" and alike else None
