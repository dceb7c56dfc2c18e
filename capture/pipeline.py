"""`capture`: from a model to an artifact, one step after the other."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import fx
from torch.export import ExportedProgram

from recreplay.capture.arguments import Example
from recreplay.capture.assign import STRATEGIES, Strategy, assign
from recreplay.capture.compilers import COMPILERS, get_compiler
from recreplay.capture.compilers.tensorrt import PRECISIONS, tensorrt_problem
from recreplay.capture.compilers.toolchain import inductor_problem
from recreplay.capture.declared import Jagged
from recreplay.capture.dense import dense_nodes
from recreplay.capture.features import to_dag
from recreplay.capture.ingest import Ingested, ingest
from recreplay.capture.layout import lay_out
from recreplay.capture.lookups import id_bounds
from recreplay.capture.operator_graph import all_strategies, operator_graph
from recreplay.capture.program_file import write_program
from recreplay.capture.rewrites.inline_linears import inline_linears
from recreplay.capture.rewrites.stack_branches import plan_weight_stacks, stack_branches
from recreplay.capture.rewrites.stack_lookups import plan_stacks, stack_lookups
from recreplay.capture.segments import BoundSegment, cut
from recreplay.capture.sharing import share
from recreplay.capture.specialise import Program, specialise
from recreplay.capture.verify import verify
from recreplay.capture.weight_stacks import WeightStack
from recreplay.capture.writer import artifact_folder, save_tensors, seal
from recreplay.runtime.artifact import CONSTANTS, SELFTEST, WEIGHTS, Artifact
from recreplay.runtime.devices import open_device
from recreplay.runtime.errors import CaptureError, CompilerError
from recreplay.runtime.graph import BucketGraph, OperatorGraph, write_graph
from recreplay.runtime.loading import LaneLoader
from recreplay.runtime.manifest import Manifest, TableView
from recreplay.runtime.mixed import make_checker
from recreplay.runtime.plan import Plan, check_plan
from recreplay.runtime.spec import IdBound

REWRITES = ("stack_lookups", "stack_branches", "inline_linears")
DEFAULT_BUCKETS = (1, 8, 64, 256)
# CPU graphs replay serially, so that more streams only mean more and smaller segments.
DEFAULT_STRATEGY: dict[str, Strategy] = {"cpu": "single", "cuda": "matching"}
Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Planned:
    """One bucket after assignment and cutting."""

    program: Program
    plan: Plan
    segments: list[BoundSegment]
    graph: BucketGraph


def capture(
    model: torch.nn.Module | ExportedProgram,
    example_inputs: Example | None = None,
    *,
    out: str | Path,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
    device: str = "cpu",
    strategy: str | None = None,
    streams: int = 8,
    compiler: str | None = None,
    rewrites: Sequence[str] = REWRITES,
    threads: int = 1,
    jagged: Sequence[Jagged] = (),
    user_inputs: Sequence[str] = (),
    users: int = 1,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    overwrite: bool = False,
    progress: Progress = lambda message: None,
) -> Manifest:
    """Capture `model` into the artifact directory `out`, proved against the eager model.

    - `model`: a module in eval mode, or an `ExportedProgram` with a dynamic batch.
    - `example_inputs`: named tensors `[B, ...]` with B >= 2, or a tuple in the order of `forward`;
      by default what the model's own `example_inputs(batch)` returns.
    - `buckets`: batch sizes to capture. A request runs in the smallest that holds it.
    - `device`: `"cpu"`, `"cuda"` or `"cuda:N"`, where the artifact will be replayed.
    - `strategy`: `"single"`, `"feature"`, `"matching"` or `"greedy"`; `DEFAULT_STRATEGY` unless
      given.
    - `streams`: the most streams that a plan may use.
    - `compiler`: `"inductor"` or `"eager"`; by default inductor where this machine can compile,
      else eager with a notice. `"tensorrt"`, `"tensorrt-tf32"` and `"tensorrt-fp16"` build engines
      for dense segments and give the rest to inductor.
    - `rewrites`: which of `REWRITES` to apply.
    - `threads`: CPU threads that compiled segments use inside of one request.
    - `jagged`: which inputs hold values of a varying number per row, and what divides them.
    - `user_inputs`: inputs that all rows of a request share, or that have a row for each of at
      most `users` users, which the input `user_index` then gives for each row. The example has
      them for every row, as the model takes them.
    - `rtol`, `atol`: how far a replay may be from eager.

    Raises `CaptureError` (what cannot be captured and why) or `ParityError`; nothing is written
    then.
    """
    begun = time.perf_counter()
    sizes = _check_arguments(buckets, rewrites, strategy, streams)
    compiler, notices = _choose_compiler(compiler, device)
    target = open_device(device)  # refuses a device that is not here before any work is done
    environment = target.fingerprint()
    target.close()
    strategy = strategy or DEFAULT_STRATEGY[target.type]
    for notice in notices:
        progress(notice)
    # A fused loop needs a compiler that fuses; operator by operator, it is only more operators.
    applied = tuple(r for r in rewrites if r != "inline_linears" or compiler == "inductor")
    with artifact_folder(Path(out), overwrite) as folder:
        progress("exporting")
        ingested = ingest(
            model,
            _example(model, example_inputs),
            jagged=jagged,
            user_inputs=user_inputs,
            users=users,
        )
        planned, stacks, bounds, unchecked = _plan(
            ingested, sizes, applied, strategy, streams, compiler in PRECISIONS, progress
        )
        backend = get_compiler(compiler, threads)
        segments = {p.program.bucket: p.segments for p in planned}
        codes, keys = share(segments, backend.dynamic_batch)
        packages = backend.compile(codes, folder, device, progress)
        constants = {k: v for p in planned for k, v in p.program.constants.items()}
        save_tensors(folder / CONSTANTS, constants)
        progress("writing weights")
        tables = _write_weights(folder, ingested, planned, stacks)
        manifest = Manifest(
            model=ingested.name,
            device=target.type,
            strategy=strategy,
            streams=streams,
            compiler=compiler,
            rewrites=applied,
            environment=environment,
            inputs=ingested.inputs,
            outputs=ingested.outputs,
            bounds=tuple(bounds),
            unchecked=tuple(unchecked),
            tables=tables,
            packages=packages,
            buckets=tuple(
                lay_out(
                    p.program,
                    p.plan,
                    p.segments,
                    keys[p.program.bucket],
                    ingested.inputs,
                    ingested.outputs,
                    ingested.users,
                )
                for p in planned
            ),
            parity=(),
            notices=tuple(notices),
            capture_seconds=0.0,
            users=ingested.users,
        )
        progress("recording and verifying")
        lane = LaneLoader(Artifact(folder, manifest), device, "error").lane()
        try:
            checker = make_checker(manifest, "error")
            parity, stored = verify(ingested, lane, checker, sizes, bounds, rtol, atol)
        finally:
            lane.close()
        save_tensors(folder / SELFTEST, stored)
        write_graph(folder, [p.graph for p in planned])
        write_program(folder, ingested)
        gc.collect()
        seconds = round(time.perf_counter() - begun, 2)
        return seal(folder, replace(manifest, parity=tuple(parity), capture_seconds=seconds))


def _check_arguments(
    buckets: Sequence[int], rewrites: Sequence[str], strategy: str | None, streams: int
) -> list[int]:
    sizes = sorted(set(buckets))
    if not sizes or any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in sizes):
        raise CaptureError(f"buckets are batch sizes of 1 or more; got {list(buckets)}")
    if len(sizes) != len(buckets):
        raise CaptureError(f"buckets has repeats: {list(buckets)}")
    for name in rewrites:
        if name not in REWRITES:
            raise CaptureError(f"unknown rewrite {name!r}; expected some of {', '.join(REWRITES)}")
    if strategy is not None and strategy not in STRATEGIES:
        raise CaptureError(
            f"unknown strategy {strategy!r}; expected single, feature, matching or greedy"
        )
    if streams < 1:
        raise CaptureError(f"streams must be 1 or more; got {streams}")
    return sizes


def _choose_compiler(compiler: str | None, device: str) -> tuple[str, list[str]]:
    if compiler is not None:
        if compiler not in COMPILERS:
            known = ", ".join(COMPILERS)
            raise CaptureError(f"unknown compiler {compiler!r}; expected one of {known}")
        if compiler in PRECISIONS and (problem := tensorrt_problem(device)) is not None:
            raise CompilerError(f"compiler {compiler!r} cannot be used: {problem}")
        return compiler, []
    problem = inductor_problem(device)
    if problem is None:
        return "inductor", []
    return "eager", [
        f"NOTICE: {problem}; segments are captured with the eager compiler, which is slower"
    ]


def _example(
    model: torch.nn.Module | ExportedProgram, example_inputs: Example | None
) -> Example | None:
    own = getattr(model, "example_inputs", None)
    if example_inputs is None and callable(own):
        made = own(4)
        if isinstance(made, (dict, tuple, list)):
            return made
        raise CaptureError(
            f"{type(model).__name__}.example_inputs(4) returned {type(made).__name__}; expected a "
            "dict of tensors"
        )
    return example_inputs


def _plan(
    model: Ingested,
    sizes: Sequence[int],
    rewrites: Sequence[str],
    strategy: str,
    streams: int,
    dense_apart: bool,
    progress: Progress,
) -> tuple[list[_Planned], list[WeightStack], list[IdBound], list[str]]:
    planned: list[_Planned] = []
    stacks: list[WeightStack] = []
    bounds: list[IdBound] = []
    unchecked: list[str] = []
    branches: list[WeightStack] = []
    for size in sizes:
        program = specialise(model, size)
        if size == sizes[0]:
            bounds, unchecked = id_bounds(program)
            stacks = plan_stacks(program) if "stack_lookups" in rewrites else []
        before = _described(program, strategy, streams) if rewrites else None
        stack_lookups(program, stacks)
        if "stack_branches" in rewrites:
            if size == sizes[0]:
                branches = plan_weight_stacks(program)
            stack_branches(program, branches)
        # It pays in the smallest bucket only, which has packages of its own; the others share.
        if "inline_linears" in rewrites and size == sizes[0]:
            inline_linears(program)
        dag, nodes = to_dag(program)
        operators = assign(dag, cast(Strategy, strategy), streams)
        check_plan(operators)
        apart = dense_nodes(operators, nodes) if dense_apart else frozenset()
        plan, segments = cut(program, operators, nodes, dag.branches, apart)
        check_plan(plan)
        after = operator_graph(dag, nodes, all_strategies(dag, operators, streams))
        if before is not None and before.operators == after.operators:
            before = None
        planned.append(_Planned(program, plan, segments, BucketGraph(size, after, before)))
        progress(
            f"bucket {size}: {len(nodes)} operators, {len(segments)} segments, {plan.streams} "
            "streams"
        )
    return planned, [*stacks, *branches], bounds, unchecked


def _described(program: Program, strategy: str, streams: int) -> OperatorGraph:
    """The program as it is now, under the strategy alone that is captured."""
    dag, nodes = to_dag(program)
    return operator_graph(dag, nodes, [assign(dag, cast(Strategy, strategy), streams)])


def _write_weights(
    folder: Path, model: Ingested, planned: Sequence[_Planned], stacks: Sequence[WeightStack]
) -> dict[str, TableView]:
    """Store each weight once: stacked tables inside of their stack, the others as they are."""
    state = {**model.exported.state_dict, **model.exported.constants}
    tables = {}
    stored: dict[str, torch.Tensor] = {}
    stacked = {stack.name for stack in stacks}
    read = {name.removeprefix("weight:") for p in planned for name in _weights(p.program.graph)}
    for stack in stacks:
        if stack.name not in read:
            continue
        for member, start in zip(stack.members, stack.starts, strict=True):
            tables[member] = TableView(stack.name, start, len(state[member]))
        stored[stack.name] = stack.store(state)
    for name in sorted(read - stacked - set(tables)):
        stored[name] = state[name]
    save_tensors(folder / WEIGHTS, stored)
    return tables


def _weights(graph: fx.Graph) -> list[str]:
    return [
        str(n.target)
        for n in graph.find_nodes(op="placeholder")
        if str(n.target).startswith("weight:")
    ]
