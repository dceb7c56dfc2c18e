"""`recreplay export`: the captured program as a file that other runtimes read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recreplay.runtime.errors import RecReplayError
from recreplay.tools import options, tables
from recreplay.tools.console import Progress, print_json, show
from recreplay.tools.files import check_output


def export(
    artifact: Annotated[Path, typer.Argument(help="An artifact that capture wrote.")],
    onnx: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there already.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the captured program as ONNX, checked by onnx and by ONNX Runtime."""
    from recreplay.capture.onnx_export import export_onnx

    if onnx.exists() and not overwrite:
        raise RecReplayError(f"{onnx} exists already; choose another place, or --overwrite")
    check_output(onnx)
    with Progress() as progress:
        progress(f"exporting {artifact}")
        worst = export_onnx(artifact, onnx)
    size = sum(f.stat().st_size for f in (onnx, Path(f"{onnx}.data")) if f.is_file())
    report = {"artifact": str(artifact), "onnx": str(onnx), "bytes": size, "max_abs_error": worst}
    if as_json:
        print_json(report)
        return
    show(
        tables.pairs(
            f"{artifact} → {onnx}",
            [
                ("size", tables.size(size)),
                *((f"max error of {name}", f"{error:.1e}") for name, error in worst.items()),
            ],
        )
    )
