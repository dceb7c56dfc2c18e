"""The `recreplay` command: which commands there are, and how a failure of any of them ends.

Commands import torch only when they run, so that `recreplay --help` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from recreplay.tools import (
    capture_model,
    demo,
    doctor,
    export_artifact,
    inspect_artifact,
    list_models,
    run_file,
)
from recreplay.tools.bench import command as bench
from recreplay.tools.console import report_error
from recreplay.tools.funnel import command as funnel
from recreplay.tools.load import command as load
from recreplay.tools.load import saturate
from recreplay.tools.schedule import command as schedule
from recreplay.tools.serve import command as serve
from recreplay.tools.view import command as view

INTERRUPTED = 130  # what a shell expects of a process that SIGINT ended


class _Commands(TyperGroup):
    """Ends every command alike: an error of ours, or of a file, is one line; anything else is a bug
    and keeps its traceback."""

    def make_context(self, *given: Any, **named: Any) -> Any:
        with _one_line():  # the help of all commands is printed here
            return super().make_context(*given, **named)

    def invoke(self, ctx: Any) -> Any:
        with _one_line():
            found = super().invoke(ctx)
            if sys.stdout is not None:  # as it is where it was closed before
                sys.stdout.flush()  # what cannot be written is an error of the command
        return found


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """What ends a command is one line, and its exit code."""
    try:
        yield
    except KeyboardInterrupt:
        report_error("interrupted; nothing was written", prefix="")
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # who read has left, which typer takes for an end without words
        report_error(_file_error(error))
        _drop_output()
        raise typer.Exit(1) from None
    except Exception as error:
        from recreplay.runtime.errors import RecReplayError

        if not isinstance(error, RecReplayError):
            raise
        report_error(str(error))
        raise typer.Exit(1) from None


def _file_error(error: OSError) -> str:
    if error.filename is None or error.strerror is None:
        return f"cannot read or write: {error}"
    return f"cannot read or write {error.filename}: {error.strerror}"


def _drop_output() -> None:
    """Python writes what is left at its end, and would complain again."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


app = typer.Typer(
    name="recreplay",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Capture recommendation models into bucketed multi-stream graphs, and replay them.",
)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    try:
        typer.echo(f"recreplay {metadata.version('recreplay')}")
    except metadata.PackageNotFoundError:
        typer.echo("recreplay (run from its source, not installed)")
    raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version.")
    ] = False,
) -> None:
    pass


app.command("models")(list_models.models)
app.command("doctor")(doctor.doctor)
app.command("capture")(capture_model.capture_command)
app.command("inspect")(inspect_artifact.inspect)
app.command("run")(run_file.run)
app.command("export")(export_artifact.export)
app.command("bench")(bench.bench)
app.command("demo")(demo.demo)
app.command("serve")(serve.serve)
app.command("loadgen")(load.loadgen)
app.command("saturate")(saturate.saturate)
app.command("schedule")(schedule.schedule)
app.command("funnel")(funnel.funnel)
app.command("view")(view.view)
app.command("trace")(view.trace)

if __name__ == "__main__":
    app(prog_name="recreplay")
