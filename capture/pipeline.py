"""`capture`: from a model to an artifact, one step after the other."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import index
from pathlib import Path

import torch
from torch.export import ExportedProgram

from recreplay.capture.arguments import Example
from recreplay.capture.assembly import Assembly
from recreplay.capture.assign import STRATEGIES, Strategy
from recreplay.capture.choices import TUNES, Choice, Tune, choices
from recreplay.capture.compilers import COMPILERS
from recreplay.capture.compilers.c_library import build_c_library
from recreplay.capture.compilers.inductor import AUTOTUNED, autotune_problem
from recreplay.capture.compilers.tensorrt import PRECISIONS, tensorrt_problem
from recreplay.capture.compilers.toolchain import (
    cxx_compiler,
    inductor_problem,
    triton_problem,
)
from recreplay.capture.declared import Jagged
from recreplay.capture.ingest import ingest
from recreplay.capture.keyed_jagged import plain_inputs
from recreplay.capture.own_example import own_example
from recreplay.capture.planning import plan_buckets, survey
from recreplay.capture.precision import choose_precision, rounding
from recreplay.capture.processors import check_processor
from recreplay.capture.program_file import write_program
from recreplay.capture.row_mixing import refuse_mixing
from recreplay.capture.sampling import ids_below
from recreplay.capture.tune import tune_buckets
from recreplay.capture.verify import stored_requests, undecided, verify
from recreplay.capture.weight_file import write_weights
from recreplay.capture.writer import artifact_folder, save_tensors, seal
from recreplay.runtime.artifact import CONSTANTS, FILLER, LAUNCHER, SELFTEST, Artifact
from recreplay.runtime.devices import open_device
from recreplay.runtime.errors import CaptureError, CompilerError
from recreplay.runtime.graph import write_graph
from recreplay.runtime.loading import LaneLoader
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.mixed import make_checker
from recreplay.runtime.processor import NATIVE

REWRITES = (
    "fold_weights",
    "narrow_ids",
    "stack_lookups",
    "group_lookups",
    "slice_early",
    "split_linears",
    "pack_linears",
    "stack_branches",
    "join_pieces",
    "inline_linears",
    "inline_columns",
    "turn_linears",
    "spread_bags",
    "fuse_epilogues",
    "pool_bytes",
    "pool_rows",
    "top_k",
    "recurrent",
    "attend",
)
# `group_lookups` has to be asked for until its kernel has run on a GPU.
DEFAULT_REWRITES = tuple(name for name in REWRITES if name != "group_lookups")
DEFAULT_BUCKETS = (1, 8, 64, 256)
MOST_ROWS = 2**31 - 1  # of a bucket: shapes beyond it are beyond any memory, too
# CPU graphs replay serially, so that more streams only mean more and smaller segments.
DEFAULT_STRATEGY: dict[str, Strategy] = {"cpu": "single", "cuda": "matching"}
Progress = Callable[[str], None]
# One at a time: what a trace puts into modules of torch, and torch's own notes on the node that it
# is making, are there for all threads.
_ALONE = threading.Lock()


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
    rewrites: Sequence[str] = DEFAULT_REWRITES,
    threads: int = 1,
    tune: Tune = "off",
    tune_seconds: float | None = None,
    jagged: Sequence[Jagged] | None = None,
    user_inputs: Sequence[str] = (),
    users: int = 1,
    row_mask: str | None = None,
    precision: str = "fp32",
    table_precision: str = "fp32",
    max_error: float | None = None,
    rtol: float | None = None,
    atol: float = 1e-5,
    processor: str = NATIVE,
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
      else eager with a notice. `"inductor-max-autotune"` (CUDA) measures kernels of matrix
      products for each bucket, and takes minutes. `"tensorrt"`, `"tensorrt-tf32"` and
      `"tensorrt-fp16"` build engines for dense segments and give the rest to inductor.
    - `rewrites`: which of `REWRITES` to apply.
    - `threads`: CPU threads that compiled segments use inside of one request.
    - `tune`: `"quick"` or `"full"` measures several ways to run each bucket, of the given
      rewrites and streams (and of all strategies, unless one is given), and keeps the fastest. All
      times stay in the manifest's `candidates`.
    - `tune_seconds`: when to stop compiling candidates; those that were compiled are measured.
    - `jagged`: which inputs hold values of a varying number per row, and what divides them;
      by default what the model's own `jagged_inputs` (values to offsets) says.
    - `user_inputs`: inputs that all rows of a request share, or that have a row for each of at
      most `users` users, which the input `user_index` then gives for each row. The example has
      them for every row, as the model takes them.
    - `row_mask`: the input, bool `[B]`, that is true for the rows of a request and false for those
      that pad it, of a model that compares the rows of a request (a softmax over candidates,
      attention among them). The example has it, all true, and requests do not: the runtime fills
      it. A request is one replay then, neither cut nor packed with others.
    - `precision`: `"fp32"`, `"tf32"` (CUDA), `"bf16"` or `"fp16"` (CUDA): what the trunk's matrix
      products read; they give float32 on.
    - `table_precision`: `"fp32"`, `"fp16"` or `"int8"`: what tables are stored as, int8 with a
      scale and an offset per row. Rows are pooled in float32.
    - `max_error`: with lowered precision, the largest error of an output against the float32 model,
      over the output's scale (its largest size in random requests). By default 0.02 for bf16, 0.005
      for tf32 and fp16, and for tables 0.002 (fp16) or 0.02 (int8) on top.
    - `processor`: what compiled segments may run on: `"native"`, this processor and those that
      have all of its instructions, or `"x86-64-v3"` (AVX2) or `"x86-64-v4"` (AVX-512), any of that
      level.
    - `rtol`, `atol`: how far a replay in float32 may be from eager, relative to the largest size of
      the output. By default 1e-4 and 1e-5; for models that compute in half precision themselves,
      0.005 (float16) or 0.02 (bfloat16).

    Raises `CaptureError` (what cannot be captured and why) or `ParityError`; nothing is written
    then. Threads that capture wait for one another.
    """
    begun = time.perf_counter()
    sizes = _check_arguments(buckets, rewrites, strategy, streams, threads, tune)
    compiler, notices = _choose_compiler(compiler, device)
    instructions = check_processor(processor)
    lowest = choose_precision(precision, table_precision, max_error, device, compiler, processor)
    target = open_device(device)  # refuses a device that is not here before any work is done
    environment = {**target.fingerprint(), "instructions": " ".join(instructions)}
    target.close()
    useless = _useless_rewrites(compiler, target.type)
    if "group_lookups" in rewrites and target.type == "cuda" and (problem := triton_problem()):
        useless.add("group_lookups")
        notices.append(f"NOTICE: lookups are not grouped: {problem}")
    for notice in notices:
        progress(notice)
    applied = tuple(r for r in rewrites if r not in useless)
    placed = strategy or DEFAULT_STRATEGY[target.type]
    given = Choice(applied, placed, streams, compiler, precision)
    with _ALONE, artifact_folder(Path(out), overwrite) as folder:
        progress("exporting")
        given_example = own_example(model) if example_inputs is None else example_inputs
        ingested = ingest(
            *plain_inputs(model, given_example),
            jagged=jagged,
            user_inputs=user_inputs,
            users=users,
            row_mask=row_mask,
        )
        for note in ingested.notes:
            progress(note)
        rtol = rounding(ingested.exported.graph) if rtol is None else rtol
        refuse_mixing(ingested, (), rtol, atol)
        known = survey(ingested, sizes[0], applied, lowest, target.type, sizes[-1], instructions)
        if known.bounds:  # rows of the example may be alike, so that mixing them does not show
            refuse_mixing(ingested, known.bounds, rtol, atol)
        for name, (least, bound) in ids_below(ingested.example, known.bounds).items():
            progress(
                f"input {name!r} of the example has id {least}, with which requests are refused: "
                f"ids of table {bound.table!r} are {bound.least} to {bound.rows - 1}; bring ids "
                f"from {bound.least} on, and one of these for padding"
            )
        for name in known.lowering.left:
            progress(
                f"table {name} stays in fp32: it is read by more than plain lookups, which "
                f"{table_precision} is for"
            )
        blank = Manifest(
            model=ingested.name,
            device=target.type,
            strategy=given.strategy,
            streams=streams,
            compiler=compiler,
            rewrites=applied,
            environment=environment,
            inputs=tuple(spec for spec in ingested.inputs if spec.kind != "mask"),
            outputs=ingested.outputs,
            bounds=known.bounds,
            unchecked=known.unchecked,
            tables={},
            packages={},
            buckets=(),
            parity=(),
            notices=tuple(notices),
            capture_seconds=0.0,
            users=ingested.users,
            precision=precision,
            table_precision=table_precision,
            max_error=lowest.max_error,
            row_mask=ingested.row_mask,
        )
        if cxx_compiler() is not None:
            build_c_library("fill.c", folder / FILLER)
            build_c_library("launch.c", folder / LAUNCHER)
        stored = stored_requests(ingested, sizes, known.bounds)
        save_tensors(folder / SELFTEST, stored)  # lanes are recorded on them
        assembly = Assembly(folder, ingested, blank, device, threads, processor, progress)
        if tune == "off":
            planned = plan_buckets(ingested, sizes, given, known, progress)
            manifest = assembly.manifest(planned, assembly.compile(given, planned))
        else:
            absent = tensorrt_problem(device)
            if lowest.max_error is not None:
                absent = "its engines have a precision of their own"
            if absent is not None:
                progress(f"no candidate uses TensorRT: {absent}")
            free = strategy is None
            tried = choices(tune, given, target.type, free, tensorrt=absent is None)
            planned, manifest = tune_buckets(
                assembly,
                sizes,
                tried,
                known,
                tune,
                tune_seconds,
                {**environment, "precision": precision},
                progress,
            )
        assembly.drop_all_but(manifest)
        constants = {k: v for p in planned for k, v in p.program.constants.items()}
        save_tensors(folder / CONSTANTS, constants)
        progress("writing weights")
        manifest = write_weights(folder, manifest, ingested, planned, known)
        progress("recording and verifying")
        lane = LaneLoader(Artifact(folder, manifest), device, "error").lane()
        try:
            checker = make_checker(manifest, "error")
            parity, answers = verify(
                ingested, lane, checker, stored, sizes, known.bounds, rtol, atol, lowest
            )
        finally:
            lane.close()
        for line in undecided(answers):
            progress(line)
        save_tensors(folder / SELFTEST, stored | answers)
        write_graph(folder, [p.graph for p in planned])
        write_program(folder, ingested)
        seconds = round(time.perf_counter() - begun, 2)
        return seal(folder, replace(manifest, parity=tuple(parity), capture_seconds=seconds))


def _check_arguments(
    buckets: Sequence[int],
    rewrites: Sequence[str],
    strategy: str | None,
    streams: int,
    threads: int,
    tune: str,
) -> list[int]:
    try:
        sizes = sorted({index(b) for b in buckets})
    except TypeError:
        sizes = []
    in_range = sizes and sizes[0] >= 1 and sizes[-1] <= MOST_ROWS
    if not in_range or any(isinstance(b, bool) for b in buckets):
        raise CaptureError(f"buckets are batch sizes of 1 to {MOST_ROWS}; got {buckets!r}")
    if len(sizes) != len(buckets):
        raise CaptureError(f"buckets has repeats: {list(buckets)}")
    for name in rewrites:
        if name not in REWRITES:
            raise CaptureError(f"unknown rewrite {name!r}; expected some of {', '.join(REWRITES)}")
    if strategy is not None and strategy not in STRATEGIES:
        raise CaptureError(
            f"unknown strategy {strategy!r}; expected single, feature, matching or greedy"
        )
    for name, value in (("streams", streams), ("threads", threads)):
        if value < 1:
            raise CaptureError(f"{name} must be 1 or more; got {value}")
    if tune not in TUNES:
        raise CaptureError(f"unknown tuning {tune!r}; expected one of {', '.join(TUNES)}")
    return sizes


def _choose_compiler(compiler: str | None, device: str) -> tuple[str, list[str]]:
    if compiler is not None:
        if compiler not in COMPILERS:
            known = ", ".join(COMPILERS)
            raise CaptureError(f"unknown compiler {compiler!r}; expected one of {known}")
        asked = {AUTOTUNED: autotune_problem, **dict.fromkeys(PRECISIONS, tensorrt_problem)}
        if compiler in asked and (problem := asked[compiler](device)) is not None:
            raise CompilerError(f"compiler {compiler!r} cannot be used: {problem}")
        return compiler, []
    problem = inductor_problem(device)
    if problem is None:
        return "inductor", []
    return "eager", [
        f"NOTICE: {problem}; segments are captured with the eager compiler, which is slower"
    ]


def _useless_rewrites(compiler: str, device: str) -> set[str]:
    # A fused loop needs a compiler that fuses; operator by operator, it is only more operators.
    # Functions of our own are compiled into packages.
    own = {"pack_linears", "pool_bytes", "pool_rows", "top_k", "recurrent", "attend"}
    fused = {"inline_linears", "inline_columns", "spread_bags"}
    useless = set() if compiler in ("inductor", AUTOTUNED) else fused | own
    if device != "cpu":
        useless |= {"turn_linears", *own}
    elif platform.machine() not in ("x86_64", "AMD64"):
        useless.add("pack_linears")  # torch has oneDNN's batch-reduce product there alone
    if device != "cuda":
        # A kernel for CUDA, what torch does better on a CPU, and a call of CUDA's library.
        useless |= {"group_lookups", "spread_bags", "inline_columns", "fuse_epilogues"}
    elif compiler in (AUTOTUNED, *PRECISIONS):
        useless.add("fuse_epilogues")  # their kernels of layers have what follows in them
    return useless
