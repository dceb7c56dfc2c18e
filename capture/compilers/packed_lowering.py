"""Teach inductor `recreplay::packed_linear`: a call of the function in `packed_linear.h`, which
goes into every package, where AOTInductor puts the declarations of custom operators.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recreplay.runtime.packed_linear import packed_linear_operator

_FUNCTION = "aoti_torch_cpu_recreplay_packed_linear_out"
_DECLARATION = (
    f"AOTITorchError {_FUNCTION}(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, "
    "AtenTensorHandle *, int64_t, int64_t, int32_t);"
)


def register_packed_linear(threads: int) -> dict[str, Any]:
    """To be called once in a process that compiles. Returns settings of inductor to compile with.

    `threads`: how many a layer runs on, as the loops that inductor writes.
    """
    from torch._inductor import ir
    from torch._inductor.lowering import register_lowering

    operator: Any = packed_linear_operator()

    @register_lowering(operator, type_promotion_kind=None)
    def linear(x: Any, packed: Any, bias: Any, lanes: int, columns: int, relu: bool) -> Any:
        outer = x.get_size()[:-1] if lanes == 1 else [lanes, x.get_size()[1]]
        tensors = [x, packed] if bias is None else [x, packed, bias]
        # Rows at one distance may lie inside of a wider result, such as a concatenation.
        layout = ir.FlexibleLayout if len(outer) == 1 + (lanes > 1) else ir.FixedLayout
        call = ir.ExternKernelOut(
            layout=layout(x.get_device(), torch.float32, [*outer, columns]),
            inputs=[
                ir.ExternKernel.require_contiguous(ir.ExternKernel.realize_input(t))
                for t in tensors
            ],
            constant_args=[*([None] if bias is None else []), lanes, columns, relu],
            python_kernel_name="torch.ops.recreplay.packed_linear.out",
            cpp_kernel_name=_FUNCTION,
            op_overload=torch.ops.recreplay.packed_linear.out,
        )
        return ir.TensorBox.create(call)

    source = Path(__file__).with_name("packed_linear.h").read_text()
    # AOTInductor writes `extern` before each declaration of its list, and nothing else to it.
    text = f"{_DECLARATION}\n#define RECREPLAY_THREADS {threads}\n{source}"
    return {"aot_inductor.custom_ops_to_c_shims": {torch.ops.recreplay.packed_linear.out: [text]}}
