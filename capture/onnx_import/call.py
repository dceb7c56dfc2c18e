"""What the function of an operator sees of a node: its inputs and attributes, or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from recreplay.capture.onnx_import.dims import Dims, from_array
from recreplay.capture.onnx_import.graph import Step
from recreplay.capture.onnx_import.natural import Natural
from recreplay.runtime.errors import UnsupportedModelError

LARGEST_CONSTANT = 4096  # elements of a constant that is read as numbers


@dataclass(frozen=True)
class Constant:
    """A value that no input changes: `array` to look at, `read()` to compute with.

    While a module is traced or tried out on fakes, a real tensor cannot be asked for its elements.
    `array` is None where there are none: a value made of fakes.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    array: np.ndarray[Any, Any] | None
    read: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor, read: Callable[[], torch.Tensor] | None = None) -> Constant:
        """The constant that a tensor is; `read` gives the tensor that stands for it later."""
        array = None
        if _get_current_dispatch_mode() is None:
            array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return cls(tuple(tensor.shape), tensor.dtype, array, read or (lambda: tensor))

    @classmethod
    def holding(cls, array: np.ndarray[Any, Any], dtype: torch.dtype) -> Constant:
        """The constant of these elements, which can be made whatever mode torch is in."""
        return cls(array.shape, dtype, array, lambda: torch.tensor(array.tolist(), dtype=dtype))

    def dims(self) -> Dims | None:
        """The same as numbers, if it is small."""
        if self.array is None or self.array.size > LARGEST_CONSTANT:
            return None
        return from_array(self.array, self.dtype)


Value = torch.Tensor | Dims | Constant | None
Number = int | float | bool


class Call:
    """One node with the values of its inputs."""

    def __init__(self, step: Step, values: Sequence[Value], natural: Natural) -> None:
        self.step = step
        self._values = values
        self._natural = natural

    @property
    def opset(self) -> int:
        return self.step.opset

    def __len__(self) -> int:
        return len(self._values)

    def has(self, at: int) -> bool:
        """Whether an optional input is given."""
        return at < len(self._values) and self._values[at] is not None

    def wants(self, at: int) -> bool:
        """Whether an optional output is asked for."""
        return at < len(self.step.outputs) and bool(self.step.outputs[at])

    def tensor(self, at: int) -> torch.Tensor:
        """An input as a tensor."""
        value = self._values[at] if at < len(self._values) else None
        if value is None:
            raise UnsupportedModelError(f"{self.step} lacks its input {at}")
        if isinstance(value, Constant):
            return value.read()
        return value.tensor() if isinstance(value, Dims) else value

    def maybe(self, at: int) -> torch.Tensor | None:
        """An optional input."""
        return self.tensor(at) if self.has(at) else None

    def tensors(self) -> list[torch.Tensor]:
        return [self.tensor(i) for i in range(len(self._values))]

    def constant(self, at: int) -> np.ndarray[Any, Any] | None:
        """The value of an input that no input of the model changes, else None."""
        value = self._values[at] if at < len(self._values) else None
        return value.array if isinstance(value, Constant) else None

    def dims(self, at: int) -> Dims | None:
        """An input as numbers, if it is computed from sizes and constants alone."""
        value = self._values[at] if at < len(self._values) else None
        if isinstance(value, Dims):
            return value
        return value.dims() if isinstance(value, Constant) else None

    def ints(self, at: int, what: str) -> list[Any]:
        """Numbers that say what shape the output has; `what` names them in a refusal."""
        found = self.dims(at)
        if found is None:
            raise UnsupportedModelError(
                f"{self.step}: {what} ({self.step.input(at)!r}) depends on the data, so the shape "
                "of its output does; a captured graph has fixed shapes, so make it a constant or "
                "compute it from shapes"
            )
        return found.flat()

    def number(self, at: int) -> Number | None:
        """A constant of one element, else None."""
        value = self.constant(at)
        if value is None or value.size != 1:
            return None
        found: Number = value.item()
        return found

    def operand(self, at: int, beside: int) -> torch.Tensor | Number:
        """An input of an elementwise operator: a number where it is a constant of one element.

        `beside` is the rank of the other operands: a constant of a higher rank raises theirs.
        """
        value = self.constant(at)
        if value is not None and value.size == 1 and value.ndim <= beside:
            found: Number = value.item()
            return found
        return self.tensor(at)

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.step.attributes.get(name, default)

    def required(self, name: str) -> Any:
        """An attribute without a default."""
        if name not in self.step.attributes:
            raise UnsupportedModelError(f"{self.step} lacks its attribute {name!r}")
        return self.step.attributes[name]

    def is_natural(self, at: int) -> bool:
        """Whether no element of an input can be negative."""
        return self.step.input(at) in self._natural.proved

    def is_given(self, at: int) -> bool:
        """Whether the elements of an input are elements of an input of the model."""
        return self.step.input(at) in self._natural.given

    def refuse(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.step}: {why}")


Result = torch.Tensor | Dims | Constant | Sequence["torch.Tensor | Dims | None"]
Operator = Callable[[Call], Result]
