"""`recreplay doctor`: what this machine can do, and what capture would choose on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from recreplay.tools import options, tables
from recreplay.tools.console import Progress, print_json, show

_MARKS = {"ok": "ok", "note": "note", "problem": "missing"}


def doctor(
    compile_check: Annotated[
        bool, typer.Option("--compile", help="Also compile a tiny model, which takes a minute.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Say what this machine can do, and which compiler and strategy capture would choose."""
    from recreplay.tools.machine import choices, gather, try_compiling

    with Progress() as progress:
        progress("looking at this machine")
        facts = gather()
        if compile_check:
            progress("compiling a tiny model")
            facts.append(try_compiling())
        chosen = choices()
    if as_json:
        print_json({"facts": [asdict(fact) for fact in facts], "choices": chosen})
        return
    show(
        tables.table(
            "This machine",
            ("what", "state", "found", "what it means"),
            [(f.name, _MARKS[f.state], f.found, f.hint) for f in facts],
        ),
        tables.table("What capture would choose", ("device", "choice"), _choice_rows(chosen)),
    )


def _choice_rows(chosen: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    for device, choice in chosen.items():
        if not choice["usable"]:
            rows.append((device, f"not usable here: {choice['problem']}"))
            continue
        because = f" ({choice['problem']})" if choice["problem"] else ""
        rows.append(
            (device, f"compiler {choice['compiler']}{because}, strategy {choice['strategy']}")
        )
    return rows
