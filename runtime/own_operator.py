"""How our own CPU operators are made known to torch: computed in Python here, by a C++ function in
packages, which write into tensors that they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

_libraries: list[Any] = []  # they take their operators along when they go


def define_operator(
    name: str, schema: str, compute: Callable[..., Tensor], shape: Callable[..., Tensor]
) -> Callable[..., Any]:
    """`recreplay::NAME(schema) -> Tensor`, and its overload `out`; to be called once for a name.

    `shape` gives an empty result for arguments without values.
    """

    def compute_out(*args: Any, out: Tensor) -> Tensor:
        return out.copy_(compute(*args))

    make: Any = torch.library.Library  # untyped
    library = make("recreplay", "FRAGMENT")
    library.define(f"{name}({schema}) -> Tensor")
    library.define(f"{name}.out({schema}, *, Tensor(a!) out) -> Tensor(a!)")
    library.impl(name, compute, "CPU")
    library.impl(f"{name}.out", compute_out, "CPU")
    torch.library.register_fake(f"recreplay::{name}", shape, lib=library)
    torch.library.register_fake(f"recreplay::{name}.out", lambda *_, out: out, lib=library)
    _libraries.append(library)
    return cast("Callable[..., Any]", getattr(torch.ops.recreplay, name).default)
