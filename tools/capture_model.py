"""`recreplay capture`: a model in, an artifact out, and a summary of what became of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recreplay.runtime.errors import CaptureError, InputTypeError
from recreplay.tools import input_options, options, strict, tables
from recreplay.tools.console import NOTICE, Progress, print_json, report_notice, show
from recreplay.tools.files import read_npz

if TYPE_CHECKING:
    from torch import Tensor

    from recreplay.runtime.manifest import Manifest
    from recreplay.tools.bucket_choice import Choice
    from recreplay.tools.target import Target


def capture_command(
    target: Annotated[
        str,
        typer.Argument(
            help="recreplay.models:dlrm_rmc1, path/to/file.py:factory, model.pt2 or model.onnx",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The artifact to write: a directory.")],
    buckets: Annotated[
        str, typer.Option(help="Batch sizes to capture, or auto: those that --sizes asks for.")
    ] = "1,8,64,256",
    sizes: Annotated[
        str | None,
        typer.Option(
            help="With --buckets auto: request sizes, as an .npy file, or lognormal, kairos, "
            "normal_165, normal_256."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="With --buckets auto: the most buckets.")] = 8,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="With --buckets auto: an artifact of the model, whose buckets are measured. "
            "[dim]Default: costs are modelled.[/]"
        ),
    ] = None,
    device: options.Device = "cpu",
    strategy: options.Strategy = None,
    streams: options.Streams = 8,
    compiler: options.Compiler = None,
    rewrites: options.Rewrites = None,
    threads: options.Threads = 1,
    tune: options.Tune = "off",
    tune_seconds: options.TuneSeconds = None,
    precision: options.Precision = "fp32",
    table_precision: options.TablePrecision = "fp32",
    max_error: options.MaxError = None,
    rtol: options.Rtol = None,
    atol: options.Atol = 1e-5,
    processor: options.Processor = "native",
    arg: options.FactoryArgs = None,
    inputs: options.ExampleFile = None,
    jagged: input_options.JaggedInputs = None,
    capacity: input_options.Capacity = None,
    user_inputs: input_options.UserInputs = None,
    users: input_options.Users = 1,
    row_mask: input_options.RowMaskInput = None,
    overwrite: options.Overwrite = False,
    strict_mode: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Capture a model into an artifact, proved against the eager model bucket by bucket."""
    from recreplay.runtime.artifact import Artifact
    from recreplay.runtime.graph import read_graph
    from recreplay.tools.target import load_target
    from recreplay.tools.view.data import finite, overview

    asked = None if buckets == "auto" else options.parse_sizes(buckets, "--buckets")
    _check_choice(asked is None, sizes, k, costs)
    example = None if inputs is None else read_example(inputs)
    declared = {
        "jagged": input_options.parse_jagged(jagged or (), capacity or ()) or None,
        "user_inputs": input_options.parse_names(user_inputs),
        "users": users,
        "row_mask": row_mask,
    }
    with Progress() as progress:
        progress(f"loading {target}")
        loaded = load_target(target, arg or ())
        choice = None
        if asked is None:
            assert sizes is not None
            choice = _choose(loaded, sizes, k, costs, example, device, progress, **declared)
            asked = choice.buckets
        manifest = capture_target(
            loaded,
            out,
            asked,
            progress,
            example=example,
            strict_mode=strict_mode,
            overwrite=overwrite,
            device=device,
            strategy=strategy,
            streams=streams,
            compiler=compiler,
            rewrites=options.parse_rewrites(rewrites),
            threads=threads,
            tune=tune,
            tune_seconds=tune_seconds,
            precision=precision,
            table_precision=table_precision,
            max_error=max_error,
            rtol=rtol,
            atol=atol,
            processor=processor,
            **declared,
        )
    summary = finite(overview(Artifact(out, manifest), read_graph(out), {}))
    if choice is not None:
        summary["bucket_choice"] = finite(choice.to_json())
    if as_json:
        print_json(summary)
        return
    if choice is not None:
        show_choice(choice)
    show_summary(summary)
    for notice in strict.remarks(manifest):
        report_notice(notice)


def _check_choice(auto: bool, sizes: str | None, k: int, costs: Path | None) -> None:
    if not auto and (sizes is not None or costs is not None):
        raise CaptureError("--sizes and --costs go with --buckets auto")
    if auto and sizes is None:
        raise CaptureError(
            "--buckets auto needs --sizes: an .npy file with the rows of each request, or the name "
            "of a published distribution, such as lognormal"
        )
    if k < 1:
        raise CaptureError(f"-k {k}: a bucket list holds 1 bucket or more")


def _choose(
    target: Target,
    sizes: str,
    k: int,
    costs: Path | None,
    example: dict[str, Tensor] | None,
    device: str,
    progress: Progress,
    **declared: Any,
) -> Choice:
    from recreplay.tools import bucket_choice

    seen = bucket_choice.read_sizes(sizes)
    progress(f"choosing at most {k} buckets for {sum(seen.values())} requests")
    if costs is not None:
        points = bucket_choice.measured_costs(costs, device)
        source = f"measured with {costs}"
    else:
        points = bucket_choice.modelled_costs(target, example, device, max(seen), **declared)
        source = "modelled from this machine's rates"
    whole = declared["row_mask"] is not None
    return bucket_choice.choose(seen, k, points, source, whole=whole)


def capture_target(
    target: Target,
    out: Path,
    buckets: Sequence[int],
    progress: Callable[[str], None],
    *,
    example: dict[str, Tensor] | None = None,
    strict_mode: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Manifest:
    """`recreplay.capture.capture` for the command line.

    What the user's model prints goes to stderr. In strict mode a capture with remarks is an error,
    and then leaves nothing behind.
    """
    from recreplay.capture import capture
    from recreplay.capture.writer import artifact_folder
    from recreplay.tools.target import no_exit

    exits = no_exit(target.text, "while it was captured; nothing was written")
    with exits, contextlib.redirect_stdout(sys.stderr):
        if not strict_mode:
            return capture(
                target.model,
                example,
                out=out,
                buckets=buckets,
                overwrite=overwrite,
                progress=progress,
                **settings,
            )
        # Some remarks are known only at the end, and what is at `out` now must outlive a refusal.
        with artifact_folder(out, overwrite) as folder:
            inside = folder / "captured"
            manifest = capture(
                target.model,
                example,
                out=inside,
                buckets=buckets,
                progress=_StrictProgress(progress),
                **settings,
            )
            strict.refuse(strict.remarks(manifest))
            for file in inside.iterdir():
                file.rename(folder / file.name)
            inside.rmdir()
            return manifest


def read_example(path: Path) -> dict[str, Tensor]:
    """Example inputs from an .npz file."""
    import torch

    found = {}
    for name, array in read_npz(path).items():
        try:
            found[name] = torch.from_numpy(array)
        except TypeError as error:
            raise InputTypeError(
                f"{path}: input {name!r} is an array of {array.dtype}, which torch does not have; "
                "expected numbers"
            ) from error
    return found


def show_summary(summary: dict[str, Any]) -> None:
    """The summary of a capture, for people."""
    show(
        tables.table(
            f"{summary['model']} → {summary['path']}",
            (
                "bucket>",
                "operators>",
                "segments>",
                "streams>",
                "waits>",
                "staging>",
                "max error vs eager>",
            ),
            [
                (
                    b["size"],
                    b["operators"],
                    b["segments"],
                    b["streams"],
                    b["waits"],
                    tables.size(b["input_bytes"] + b["output_bytes"]),
                    f"{b['parity']['max_abs']:.1e}",
                )
                for b in summary["buckets"]
            ],
        ),
        f"{summary['device']}, {summary['strategy']}, {summary['compiler']}: "
        f"{summary['packages']} packages, {tables.size(summary['disk_bytes'])} on disk, "
        f"captured in {summary['capture_seconds']:.1f} s",
    )


def show_choice(choice: Choice) -> None:
    """The bucket list that was chosen beside lists by rule, for people."""
    from recreplay.tools import bucket_choice

    asked = choice.sizes
    points = ", ".join(f"{n}: {tables.micros(us)}" for n, us in choice.points.items())
    show(
        tables.table(
            f"Buckets for {asked['requests']:,} requests of {asked['smallest']} to "
            f"{asked['largest']} rows, {asked['mean']:g} on average",
            ("list", "buckets", "expected µs>", "over auto>", "padding>", "split>"),
            bucket_choice.rows(choice),
        ),
        f"Costs {choice.costs} (bucket: µs; straight lines between): {points}. Padding is the "
        "share of replayed rows that no request asked for.\n",
    )


class _StrictProgress:
    """Ends a capture at its first notice, before any work is spent on it."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress

    def __call__(self, message: str) -> None:
        if message.startswith(NOTICE):
            strict.refuse([message.removeprefix(NOTICE)])
        self._progress(message)
