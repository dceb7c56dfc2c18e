"""Where text goes: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.status import Status

PLAIN_WIDTH = 110  # columns where there is no terminal to ask
NOTICE = "NOTICE: "


def _console(*, stderr: bool = False, markup: bool = True) -> Console:
    """Made anew for each use: tests and services exchange sys.stdout and sys.stderr."""
    console = Console(stderr=stderr, highlight=False, markup=markup, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    return console


def printable(text: str) -> str:
    """A text that moves no cursor of a terminal and changes none of its colours, whatever the names
    of models and files in it: what is no letter is spelled out."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def show(*renderables: RenderableType) -> None:
    """Print results. Brackets in a text are its own: names of models and files have them."""
    console = _console(markup=False)
    for renderable in renderables:
        console.print(printable(renderable) if isinstance(renderable, str) else renderable)


def print_json(data: Any) -> None:
    """Print a result for machines. With `--json` this is all that goes to stdout."""
    print(json.dumps(data, indent=2))


def report_error(message: str, prefix: str = "error: ") -> None:
    """One red line on stderr; soft-wrapped, so that it can be searched for and copied."""
    _console(stderr=True).print(f"[bold red]{prefix}{_plain(message)}[/]", soft_wrap=True)


def report_notice(message: str) -> None:
    """One yellow line on stderr for what was done otherwise than asked."""
    _console(stderr=True).print(_notice(message), soft_wrap=True)


def _plain(text: str) -> str:
    return escape(printable(text))


def _notice(message: str) -> str:
    return f"[yellow]notice: {_plain(message.removeprefix(NOTICE))}[/]"


class Progress:
    """What a long command is doing right now: a spinner on a terminal, else a line for each step.

    Call it with a message. Notices stay visible, whatever comes after them.
    """

    def __init__(self) -> None:
        self._console = _console(stderr=True)
        self._begun = time.perf_counter()
        self._status: Status | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __call__(self, message: str) -> None:
        if message.startswith(NOTICE):
            self._console.print(_notice(message), soft_wrap=True)
        elif self._status is not None:
            self._status.update(f"{_plain(message)} [dim]({self._elapsed()})[/]")
        else:
            self._console.print(f"[dim]{self._elapsed():>6}[/] {_plain(message)}", soft_wrap=True)

    def _elapsed(self) -> str:
        return f"{time.perf_counter() - self._begun:.0f} s"
