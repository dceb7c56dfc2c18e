"""Why a model cannot be captured: the operator, the line of the model, and what to do instead."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from recreplay.capture.rows_asked import model_line
from recreplay.capture.traceable import traceable_call
from recreplay.runtime.errors import UnsupportedModelError

aten = torch.ops.aten
_NAMED = 2  # lines in one refusal, at most
# Calls that ask about a tensor, or are torch's own; never what a model is refused for.
_METADATA = {
    *("__get__", "__set__", "_set_grad_enabled", "size", "dim", "stride", "storage_offset"),
    *("numel", "element_size", "is_contiguous", "untyped_storage", "is_floating_point"),
}
_BATCH_NORMS = {
    aten.batch_norm.default,
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_functional.default,
}


class LastCall(TorchFunctionMode):
    """Remembers the torch function that the model called last, to name it in a refusal, and calls
    others where torch could not trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.operator = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in _METADATA:
            self.operator = name
        return traceable_call(func, args, kwargs or {})


def refusal(
    error: Exception, last: LastCall, batch: int, asking: Sequence[str] = ()
) -> UnsupportedModelError:
    """`asking`: see `lines_that_ask`."""
    text = str(error)
    where = _user_frame(error)
    asked = where or " or".join(asking[:_NAMED])
    if isinstance(error, KeyError) and "already exists" in text:
        return UnsupportedModelError(
            "a parameter or buffer of the model is called as an attribute of torch's programs is "
            f"({text.strip(chr(34))}); give it another name"
        )
    if "data-dependent" in text.lower() or "unbacked" in text.lower():
        return UnsupportedModelError(
            f"the model branches or sizes a tensor on data (last operator: "
            f"{last.operator!r}{where}); a "
            "captured graph has fixed shapes, so compute with masks or a fixed capacity instead"
        )
    guard = next((line for line in text.splitlines() if "generated guard" in line), "")
    if "batch" in text and guard:
        return UnsupportedModelError(
            "the model is not the same for every batch: it compares the number of rows with "
            f"something{asked}. torch.export says: {guard.strip(' -')}; compute both and select "
            "by torch.where, or leave the comparison out"
        )
    if "batch" in text and ("constraint" in text.lower() or "specialized" in text.lower()):
        return UnsupportedModelError(
            f"the model fixes its batch at the example's {batch}{asked}; take sizes from the "
            "input's shape (x.shape[0], not int() of it), and no numbers out of tensors "
            "(.tolist(), .item()). "
            f"torch.export says: {_first_line(text, 'specialized')}"
        )
    if last.operator in ("numpy", "__array__"):
        return UnsupportedModelError(
            f"the model takes a tensor out of torch by {last.operator!r}{where}; a captured graph "
            "has operators of torch alone, so compute it with those, or before the request as an "
            "input"
        )
    return UnsupportedModelError(
        f"torch.export cannot trace the model (last operator: {last.operator!r}{where}): "
        f"{_first_line(text)}"
    )


def _first_line(text: str, about: str = "") -> str:
    """Of those that have `about` in them, if any has."""
    lines = [line.strip(" -") for line in text.splitlines() if line.strip(" -")]
    return next((line for line in lines if about in line), lines[0] if lines else "no message")


def _user_frame(error: BaseException) -> str:
    """` at file:line: source` of the innermost frame that is not torch's."""
    found = ""
    chain: BaseException | None = error
    while chain is not None:
        for frame in traceback.extract_tb(chain.__traceback__):
            found = model_line(frame.filename, frame.lineno, frame.line) or found
        chain = chain.__cause__ or chain.__context__
    return found


def refuse_operators(exported: ExportedProgram) -> None:
    """Refuse what exports but cannot be captured: sizes from data, chance, foreign code, and what
    is no plain array."""
    for name, value in {**exported.state_dict, **exported.constants}.items():
        if isinstance(value, torch.Tensor) and value.layout != torch.strided:
            raise UnsupportedModelError(
                f"{name!r} of the model is a sparse tensor ({value.layout}), which no artifact "
                "stores; keep it dense (.to_dense()), or what is computed of it as a table"
            )
    for node in exported.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise UnsupportedModelError(
                f"operator {node.target} runs one of several programs{stack_line(node)}; a "
                "captured graph always runs the same one, so compute both and select by "
                "torch.where"
            )
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace != "aten":
            raise UnsupportedModelError(
                f"operator {node.target} is not one of torch's own{stack_line(node)}; an artifact "
                "runs without your code, so write it with torch operators"
            )
        if node.meta.get("unbacked_bindings"):
            raise UnsupportedModelError(
                f"operator {node.target} has an output whose size or value depends on the data"
                f"{stack_line(node)}; a captured graph has fixed shapes, so compute with masks "
                "or a fixed capacity instead"
            )
        if _draws(node):
            raise UnsupportedModelError(
                f"operator {node.target} draws random numbers{stack_line(node)}; a replay must "
                "be a function of its inputs"
            )
        if _normalises_rows(node):
            raise UnsupportedModelError(
                f"operator {node.target} normalises by the rows of a request together"
                f"{stack_line(node)}; each row has to be scored by itself, so let the layer keep "
                "running statistics (track_running_stats=True, made once and not in forward)"
            )


def _draws(node: torch.fx.Node) -> bool:
    """Whether an operator draws random numbers as it is called: recurrent layers and attention may,
    and do not for a model in eval mode."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    given = _arguments(node, node.target)
    for name in ("train", "training"):
        if name in given:
            return given[name] is not False  # None is for some operators that it does
    return bool(given.get("dropout_p", True) != 0.0)


def _normalises_rows(node: torch.fx.Node) -> bool:
    """Whether it is batch normalisation by statistics of what it is given, over the rows: those of
    the channels of each row are `InstanceNorm`'s."""
    if node.target not in _BATCH_NORMS:
        return False
    given = _arguments(node, node.target)
    rows, _, *places = given["input"].meta["val"].shape
    free = any(isinstance(size, torch.SymInt) for size in (rows, *places))
    return bool(given["training"]) and free


def _arguments(node: torch.fx.Node, operator: torch._ops.OpOverload) -> dict[str, Any]:
    """By name, with what is left out."""
    arguments = operator._schema.arguments
    return {
        **{a.name: a.default_value for a in arguments if a.has_default_value()},
        **dict(zip((a.name for a in arguments), node.args, strict=False)),
        **node.kwargs,
    }


def stack_line(node: torch.fx.Node) -> str:
    """` at file:line: source` of the user's line that made this node, or of torch's that did."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
    torchs = ""
    for at in range(len(lines) - 1, -1, -1):
        if lines[at].startswith("File ") and not lines[at].startswith('File "<'):
            file, _, rest = lines[at].removeprefix('File "').partition('", line ')
            number = rest.partition(",")[0]
            source = lines[at + 1] if at + 1 < len(lines) else ""
            if line := model_line(file, int(number), source):
                return line
            torchs = torchs or f" at {file}:{number}: {source}"
    return torchs
