"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recreplay.runtime.errors import CaptureError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else.")]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Fail on notices: eager fallback, unchecked tables, splits, padding, clamped ids.",
    ),
]
Device = Annotated[str, typer.Option(help="Where the artifact is replayed: cpu or cuda.")]
Strategy = Annotated[
    str | None,
    typer.Option(
        help="single, feature, matching or greedy. [dim]Default: single on the CPU, matching on "
        "CUDA.[/]"
    ),
]
Streams = Annotated[int, typer.Option(help="The most streams that a plan may use.")]
Compiler = Annotated[
    str | None,
    typer.Option(
        help="inductor, eager or, on CUDA, inductor-max-autotune and, for dense segments, "
        "tensorrt, tensorrt-tf32, tensorrt-fp16. [dim]Default: inductor where this machine can "
        "compile, else eager with a notice.[/]"
    ),
]
Rewrites = Annotated[
    str | None,
    typer.Option(
        help="Rewrites to apply, separated by commas, or none. [dim]Default: all but "
        "group_lookups.[/]"
    ),
]
Tune = Annotated[
    str,
    typer.Option(
        help="off, quick or full: measure candidates for each bucket and keep the fastest."
    ),
]
TuneSeconds = Annotated[
    float | None, typer.Option(help="Stop compiling candidates after so many seconds.", min=0)
]
Threads = Annotated[int, typer.Option(help="CPU threads inside of one request.")]
Precision = Annotated[
    str,
    typer.Option(
        help="What the trunk's matrix products read: fp32, tf32 (CUDA), bf16 or fp16 (CUDA)."
    ),
]
TablePrecision = Annotated[
    str, typer.Option(help="What tables are stored as: fp32, fp16, or int8 with a scale per row.")
]
Processor = Annotated[
    str,
    typer.Option(
        help="What compiled segments may run on: native, which is this processor and those that "
        "have all of its instructions; x86-64-v3 (AVX2) or x86-64-v4 (AVX-512), any of that level."
    ),
]
MaxError = Annotated[
    float | None,
    typer.Option(
        help="With lowered precision: the largest error of an output over its scale. [dim]Default: "
        "0.02 for bf16, 0.005 for tf32 and fp16; for tables 0.02 (int8) or 0.002 (fp16) on top.[/]"
    ),
]
Rtol = Annotated[
    float | None,
    typer.Option(
        help="How far a replay in float32 may be from eager, over the largest size of an output. "
        "[dim]Default: 0.0001; more for models in half precision.[/]",
        min=0,
    ),
]
Atol = Annotated[float, typer.Option(help="The same, absolute, on top.", min=0)]
FactoryArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--arg", metavar="NAME=VALUE", help="An argument of the factory; may be repeated."
    ),
]
ExampleFile = Annotated[
    Path | None,
    typer.Option(
        help="Example inputs as .npz, for a model without a method example_inputs(batch)."
    ),
]
Seed = Annotated[
    int, typer.Option(help="Of arrivals, sizes and requests.", min=0, max=(1 << 32) - 1)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an artifact that is there already.")
]


def parse_sizes(text: str, option: str) -> list[int]:
    """Batch sizes from `1,8,64`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CaptureError(
            f"{option} {text!r}: expected batch sizes separated by commas, such as 1,8,64"
        ) from None


def parse_numbers(
    text: str, option: str, what: str, least: int, most: int | None = None
) -> list[int]:
    """Whole numbers from `1,2,4`, each in a range; `what` they are, for the error message."""
    expected = f"{least} or more" if most is None else f"{least} to {most}"
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least or (most is not None and max(found) > most):
        raise CaptureError(
            f"{option} {text!r}: expected {what} separated by commas, each a whole number, "
            f"{expected}"
        )
    return found


def parse_rewrites(text: str | None) -> tuple[str, ...]:
    """Names of rewrites from `a,b`, from `none`, or the usual ones."""
    if text is None:
        from recreplay.capture import DEFAULT_REWRITES

        return DEFAULT_REWRITES
    return () if text == "none" else tuple(part.strip() for part in text.split(","))
