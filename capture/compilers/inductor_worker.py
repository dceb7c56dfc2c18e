"""A process that compiles: segment code in, unpacked AOTInductor packages out.

Run as `python -m recreplay.capture.compilers.inductor_worker` by `compile_workers`, which writes
the path of a job to its standard input, and reads what becomes of it.
"""

from __future__ import annotations

import json
import operator
import select
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch._inductor
from torch import fx
from torch._dynamo.exc import UserError
from torch.export import Dim

from recreplay.capture.compilers.checked_calls import with_checked_calls
from recreplay.capture.compilers.compile_workers import APART, COMPILED, DONE
from recreplay.capture.compilers.input_checks import without_input_checks
from recreplay.capture.compilers.lent_buffers import with_lent_buffers
from recreplay.capture.compilers.own_functions import OwnFunctions
from recreplay.capture.compilers.package_parts import PackageParts
from recreplay.capture.compilers.realised_copies import realise_copies
from recreplay.capture.compilers.row_loops import vectorise_columns
from recreplay.capture.compilers.tangents import tangents_as_ratios
from recreplay.capture.compilers.target_processor import compiling_for
from recreplay.capture.compilers.turned_softmax import turn_softmaxes
from recreplay.capture.compilers.unloadable import leave_out_marks, without_destructors
from recreplay.capture.compilers.vector_masks import keep_vectors
from recreplay.capture.compilers.views_as_pointers import views_as_pointers
from recreplay.capture.compilers.wrapper_source import edit_wrappers
from recreplay.capture.traceable import provable_strides
from recreplay.runtime.aten import decode, resolve
from recreplay.runtime.processor import block_columns, instruction_sets

aten = torch.ops.aten
_COMPLEX_PARTS = 8  # inductor's max_complex_pointwise_cat_inputs
# The table that a segment is compiled with; the real number of rows is dynamic.
_STAND_IN_ROWS, _STAND_IN_BYTES = 64, 1 << 20
# Operators by which a number of the code becomes an id, or is added to one.
_NUMBERS = tuple(f"aten.{name}" for name in ("add.", "sub.", "rsub.", "clamp", "where.", "full"))
_NUMBERS += ("aten.masked_fill.", "aten.fill.", "aten.scalar_tensor.")


@dataclass(frozen=True)
class Module:
    """A segment ready for export: it writes its outputs into its last arguments."""

    graph: fx.GraphModule
    examples: tuple[torch.Tensor, ...]
    shapes: tuple[dict[int, Any] | None, ...]


def build_module(
    data: dict[str, Any], device: str, batches: tuple[int, int] | None = None
) -> Module:
    """Segment code as a graph module, with example arguments and dynamic shapes.

    `data` is a `SegmentCode` as JSON. With `batches`, the smallest and largest, it may hold
    `{"batch": [a, c]}` for sizes `a * batch + c`. Tables have a dynamic number of rows.
    """
    target = torch.device(device)
    batch = Dim("batch", min=batches[0], max=batches[1]) if batches else None
    example_batch = batches[1] if batches else 0
    graph = fx.Graph()
    examples: list[torch.Tensor] = []
    shapes: list[dict[int, Any] | None] = []
    tensors: list[tuple[fx.Node, list[Any]]] = []
    runs, reached = target.type != "cpu", _STAND_IN_ROWS + _numbers(data["operators"])

    def argument_tensor(name: str, dtype: str, shape: list[Any], table: bool) -> fx.Node:
        sizes = [_size(d, example_batch) for d in shape]
        dynamic = {i: _dim(d, batch) for i, d in enumerate(shape) if isinstance(d, dict)}
        if table:
            row = getattr(torch, dtype).itemsize * prod(sizes[1:])
            rows = max(reached, _STAND_IN_BYTES // row) if runs else 0
            sizes[0] = max(_STAND_IN_ROWS, min(sizes[0], rows))
            dynamic[0] = Dim(f"rows_{name}", min=1)
        # Zeros are valid ids for any table. The compiler runs what it compiles for CUDA, where an
        # id that is in no row would end the context.
        examples.append(torch.zeros(sizes, dtype=getattr(torch, dtype), device=target))
        shapes.append(dynamic or None)
        node = graph.placeholder(name)
        tensors.append((node, shape))
        return node

    values: dict[str, fx.Node] = {}
    for i, (dtype, shape) in enumerate(data["inputs"]):
        values[f"i{i}"] = argument_tensor(f"i{i}", dtype, shape, i in data["tables"])
    outputs = [
        argument_tensor(f"out{i}", dtype, shape, False)
        for i, (dtype, shape) in enumerate(data["outputs"])
    ]
    symbol = _batch_symbol(graph, tensors) if batches else None
    sizes: dict[tuple[int, int], fx.Node] = {}

    def number(slope: int, offset: int) -> fx.Node:
        assert symbol is not None
        if (slope, offset) not in sizes:
            scaled = graph.call_function(operator.mul, (symbol, slope))
            sizes[slope, offset] = graph.call_function(operator.add, (scaled, offset))
        return sizes[slope, offset]

    def argument(arg: Any) -> Any:
        if isinstance(arg, dict) and "value" in arg:
            return values[arg["value"]]
        if isinstance(arg, dict) and "batch" in arg:
            return number(*arg["batch"])
        if isinstance(arg, list):
            return [argument(a) for a in arg]
        return decode(arg, target)

    for name, function, args, kwargs in data["operators"]:
        values[name] = graph.call_function(
            resolve(function),
            tuple(argument(a) for a in args),
            {k: argument(v) for k, v in kwargs.items()},
        )
    for buffer, result in zip(outputs, data["results"], strict=True):
        graph.call_function(aten.copy_.default, (buffer, values[result]))
    graph.output(())
    return Module(fx.GraphModule(torch.nn.Module(), graph), tuple(examples), tuple(shapes))


def _numbers(operators: list[Any]) -> int:
    """The most that ids of zero become by numbers of the code."""
    found = [
        (*args, *kwargs.values()) for _, f, args, kwargs in operators if f.startswith(_NUMBERS)
    ]
    return sum(abs(n) for arguments in found for n in arguments if type(n) is int)


def _size(d: Any, batch: int) -> int:
    return int(d["batch"][0] * batch + d["batch"][1]) if isinstance(d, dict) else int(d)


def _dim(d: dict[str, Any], batch: Any) -> Any:
    slope, offset = d["batch"]
    scaled = slope * batch if slope != 1 else batch
    return scaled + offset if offset else scaled


def _batch_symbol(graph: fx.Graph, tensors: list[tuple[fx.Node, list[Any]]]) -> fx.Node:
    for node, shape in tensors:
        for i, d in enumerate(shape):
            if d == {"batch": [1, 0]}:
                return graph.call_function(aten.sym_size.int, (node, i))
    raise ValueError("no tensor of the segment has the batch as a size")


def concatenation_settings(graph: fx.Graph) -> dict[str, Any]:
    """Settings with which inductor makes one kernel for CUDA of a concatenation.

    Of many parts it makes a kernel for each by default, and beyond eight of parts that are more
    than a read, too. Not all are pieces of few tensors: where branches have several widths, their
    pieces alternate. What several pieces are of is computed once, then, and not in each of them: 40
    features on one stream are 23 kernels in place of 60 (`tests/emulated`). With few parts that is
    a kernel more.
    """
    joined = graph.find_nodes(op="call_function", target=aten.cat.default)
    many = any(len(node.args[0]) > _COMPLEX_PARTS for node in joined)
    return {"max_pointwise_cat_inputs": 64, **({"realize_reads_threshold": 1} if many else {})}


def compile_module(module: Module, settings: dict[str, Any], scratch: str, target: Path) -> None:
    """Export and compile one segment with inductor's `settings`, and lay its package open below
    `target`. Raises torch's UserError where a size cannot be as free as the module says."""
    with torch.no_grad(), provable_strides():
        exported = torch.export.export(module.graph, module.examples, dynamic_shapes=module.shapes)
    turn_softmaxes(exported.graph)
    if all(example.device.type == "cpu" for example in module.examples):
        keep_vectors(exported.graph)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        package = torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(Path(folder) / "model.pt2"),
            inductor_configs=settings,
        )
        unpacked = Path(folder) / "unpacked"
        zipfile.ZipFile(package).extractall(unpacked)
        inside = next(unpacked.iterdir())  # a package is one folder, named like the file
        for source in inside.rglob("*.cpp"):
            # The loader reads no source, but torch 2.11 finds the library by the source's name.
            source.write_text("")
        shutil.copytree(inside, target)


class Compiler:
    """Does jobs, one after the other; changes inductor in this process as packages need it."""

    def __init__(self, scratch: str) -> None:
        self._scratch = scratch
        self._functions: dict[tuple[int, int], OwnFunctions] = {}
        edit_wrappers(
            with_checked_calls,
            views_as_pointers,
            without_destructors,
            without_input_checks,
            with_lent_buffers,
        )
        leave_out_marks()
        vectorise_columns()
        realise_copies()
        tangents_as_ratios()
        self._parts = PackageParts(without_destructors, Path(scratch))

    def compile(self, job: dict[str, Any]) -> None:
        with compiling_for(job["processor"]) as settings:
            self._compile(job, job["settings"] | settings)

    def _compile(self, job: dict[str, Any], settings: dict[str, Any]) -> None:
        made_for = settings["cpp.threads"], block_columns(instruction_sets(job["processor"]))
        if made_for not in self._functions:
            self._functions[made_for] = OwnFunctions(*made_for)
        functions = self._functions[made_for]
        # What Triton kernels of products are made with.
        torch.set_float32_matmul_precision("high" if job["tf32"] else "highest")
        for key, code in job["codes"].items():
            module = _module(code, job["device"])
            targets = {str(node.target) for node in module.graph.graph.nodes}
            chosen = settings | functions.declarations(targets)
            if job["device"] != "cpu":
                chosen |= concatenation_settings(module.graph.graph)
            try:
                with self._parts.calling(functions.sources(targets)):
                    compile_module(module, chosen, self._scratch, Path(job["target"]) / key)
            except UserError:
                if "static" in code:
                    raise
                print(APART, key, flush=True)
            else:
                print(COMPILED, key, flush=True)


def _module(code: dict[str, Any], device: str) -> Module:
    if "static" in code:
        return build_module(code["static"], device)
    dynamic = code["dynamic"]
    return build_module(dynamic["data"], device, (dynamic["low"], dynamic["high"]))


def main() -> None:
    """Do the jobs that are named on standard input, until it ends, or brings none for as many
    seconds as the command line says."""
    compiler, patience = None, float(sys.argv[1])
    while select.select([sys.stdin], [], [], patience)[0]:
        path = sys.stdin.readline().strip()
        if not path:
            break
        job = json.loads(Path(path).read_text())
        compiler = compiler or Compiler(job["scratch"])
        compiler.compile(job)
        print(DONE, flush=True)


if __name__ == "__main__":
    main()
