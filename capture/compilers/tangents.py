"""Hyperbolic tangents of float32 vectors by one ratio of polynomials.

Inductor calls Sleef's, which is right to the last bit and takes 0.9 ns a value, eight times as long
as an exponential (one Zen 5 core); additive attention, GELU in its tanh form and Mish are mostly
that. The ratio, with Eigen's coefficients, is within some units in the last place, next to 0 too.
"""

from __future__ import annotations

from typing import Any

import torch

_FAR = "7.90531110763549805f"  # where the ratio is largest
_ONE = "9.02f"  # from here on float32 rounds to 1
_ABOVE = (  # an odd polynomial over an even one, from the highest power
    "-2.76076847742355e-16f",
    "2.00018790482477e-13f",
    "-8.60467152213735e-11f",
    "5.12229709037114e-08f",
    "1.48572235717979e-05f",
    "6.37261928875436e-04f",
    "4.89352455891786e-03f",
)
_BELOW = (
    "1.19825839466702e-06f",
    "1.18534705686654e-04f",
    "2.26843463243900e-03f",
    "4.89352518554385e-03f",
)


def tangents_as_ratios() -> None:
    """Have every package of this process compiled so."""
    from torch._inductor.codegen.cpp import CppVecOverrides

    usual: Any = CppVecOverrides.tanh  # untyped

    def tanh(a: Any) -> str:
        return _tanh(a) if a.dtype == torch.float32 else str(usual(a))

    CppVecOverrides.tanh = staticmethod(tanh)  # type: ignore[method-assign]


def _tanh(a: Any) -> str:
    """The expression over a vector that is called `a`. NaN stays."""
    return (
        "[](auto given) { using V = decltype(given); "
        f"const V x = at::vec::clamp(given, V(-{_FAR}), V({_FAR})), square = x * x; "
        f"const V ratio = x * {_polynomial(_ABOVE)} / {_polynomial(_BELOW)}; "
        "const V one = V::blendv(V(1.0f), V(-1.0f), given < V(0.0f)); "
        f"return V::blendv(ratio, one, given.abs() > V({_ONE})); }}({a})"
    )


def _polynomial(coefficients: tuple[str, ...]) -> str:
    text = f"V({coefficients[0]})"
    for coefficient in coefficients[1:]:
        text = f"at::vec::fmadd({text}, square, V({coefficient}))"
    return text
