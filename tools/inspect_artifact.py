"""`recreplay inspect`: what an artifact holds. Nothing of it is executed, nor is torch loaded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from recreplay.runtime.processor import NATIVE, PROCESSORS, instruction_sets
from recreplay.tools import options, tables
from recreplay.tools.console import print_json, report_notice, show


def inspect(
    artifact: Annotated[Path, typer.Argument(help="An artifact that capture wrote.")],
    bucket: Annotated[
        int | None, typer.Option(help="Show the plan of this bucket, step by step.")
    ] = None,
    take_measures: Annotated[
        bool, typer.Option("--measure", help="With --json: also replay here and say the times.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show buckets, streams, segments, waits, memory, tables and parity of an artifact.

    With --json: all that the page of `recreplay view` shows.
    """
    from recreplay.runtime.artifact import open_artifact
    from recreplay.runtime.errors import RecReplayError
    from recreplay.runtime.graph import read_graph
    from recreplay.tools.describe import find_bucket
    from recreplay.tools.view.bucket import bucket_view
    from recreplay.tools.view.data import finite, overview
    from recreplay.tools.view.measured import measure

    if take_measures and not as_json:
        raise RecReplayError(
            "--measure says its times in JSON only: add --json, or `recreplay view --measure`"
        )
    opened = open_artifact(artifact)
    found = None if bucket is None else find_bucket(opened, bucket)
    graphs = read_graph(opened.path)
    chosen = None if bucket is None else [bucket]
    measured = measure(opened, chosen) if take_measures else {}
    if found is None:
        summary = finite(overview(opened, graphs, measured))
        if as_json:
            print_json(summary)
            return
        show(*_overview(summary))
        for notice in summary["notices"]:
            report_notice(notice)
        return
    shown = bucket_view(found, opened.manifest, graphs.get(found.size), measured.get(found.size))
    if as_json:
        print_json(finite(shown))
    else:
        show(_plan(found.plan.strategy, shown, shown["steps"]))


def _weights(memory: dict[str, int]) -> str:
    words = tables.size(memory["weights_bytes"])
    if memory["made_bytes"]:
        words += f", {tables.size(memory['made_bytes'])} of them made of others"
    if memory["copied_bytes"]:
        words += f"; copies for products, made at load: {tables.size(memory['copied_bytes'])}"
    return words


def _overview(summary: dict[str, Any]) -> Iterator[RenderableType]:
    memory, environment = summary["memory"], summary["environment"]
    yield tables.pairs(
        f"{summary['model']} ({summary['path']})",
        [
            ("device", summary["device"]),
            ("strategy", f"{summary['strategy']}, at most {summary['streams']} streams"),
            ("compiler", f"{summary['compiler']}, {summary['packages']} packages"),
            ("rewrites", ", ".join(summary["rewrites"]) or "none"),
            ("precision", _precision(summary)),
            ("captured in", f"{summary['capture_seconds']:.1f} s"),
            ("on disk", tables.size(summary["disk_bytes"])),
            ("weights", _weights(memory)),
            (
                "a lane",
                f"{tables.size(memory['lane_bytes'])}: staging "
                f"{tables.size(memory['staging_bytes'])}, buffers "
                f"{tables.size(memory['buffer_bytes'])}",
            ),
            *((f"made for {key}", _short(key, value)) for key, value in environment.items()),
        ],
    )
    yield tables.table(
        "Buckets",
        (
            "bucket>",
            "operators>",
            "segments>",
            "streams>",
            "waits>",
            "inputs>",
            "buffers>",
            "outputs>",
            "max error>",
            "relative>",
        ),
        [
            (
                b["size"] if b["portion"] == b["size"] else f"{b['size']} by {b['portion']}",
                b["operators"],
                b["segments"],
                b["streams"],
                b["waits"],
                tables.size(b["input_bytes"]),
                tables.size(b["buffer_bytes"]),
                tables.size(b["output_bytes"]),
                *(
                    (f"{b['parity']['max_abs']:.1e}", f"{b['parity']['max_rel']:.1e}")
                    if b["parity"]
                    else ("-", "-")
                ),
            )
            for b in summary["buckets"]
        ],
    )
    if summary["max_error"] is not None:
        yield tables.table(
            f"Errors against the float32 model, at most {summary['max_error']:g} of the scale",
            ("bucket>", "output", "max error>", "scale>", "of scale>"),
            [
                _error(b["size"], output)
                for b in summary["buckets"]
                if b["parity"]
                for output in b["parity"]["outputs"]
            ],
        )
    if any(b["candidates"] for b in summary["buckets"]):
        yield tables.table(
            "Candidates that were measured for each bucket",
            (
                "bucket>",
                "time>",
                "",
                "compiler",
                "products",
                "strategy",
                "streams>",
                "rewrites",
                "why not",
            ),
            [_candidate(b["size"], c) for b in summary["buckets"] for c in b["candidates"]],
        )
    yield tables.table(
        "Inputs",
        ("name", "inputs>", "shape", "what", "ids below"),
        _input_rows(summary["inputs"], summary["users"], summary["row_mask"]),
    )
    yield tables.table(
        "Outputs",
        ("name", "row"),
        [(o["name"], _row(o)) for o in summary["outputs"]],
    )
    if summary["stacks"]:
        yield tables.table(
            "Stacked tables",
            ("stored as", "tables>", "rows>", "which"),
            [
                (s["name"], len(s["tables"]), f"{s['rows']:,}", _shortened(s["tables"]))
                for s in summary["stacks"]
            ],
        )


def _short(key: str, value: str) -> str:
    """Instruction sets are many: their level, or how many they are. The JSON has them."""
    if key != "instructions":
        return value
    sets = value.split()
    level = next((p for p in PROCESSORS if p != NATIVE and instruction_sets(p) == sets), None)
    return f"any {level}" if level else f"the {len(sets)} sets of the processor that captured it"


def _precision(summary: dict[str, Any]) -> str:
    words = f"{summary['precision']}, tables {summary['table_precision']}"
    count = len(summary["lowered"])
    return f"{words}, {count} weights stored in less" if count else words


def _error(size: int, output: dict[str, Any]) -> tuple[object, ...]:
    share = output["max_abs"] / output["scale"] if output["scale"] else 0.0
    return (
        size,
        output["output"],
        f"{output['max_abs']:.1e}",
        f"{output['scale']:.3g}",
        f"{share:.1e}",
    )


def _candidate(size: int, candidate: dict[str, Any]) -> tuple[object, ...]:
    return (
        size,
        tables.micros(candidate["us"]),
        "kept" if candidate["chosen"] else "",
        candidate["compiler"],
        candidate["precision"],
        candidate["strategy"],
        candidate["streams"],
        ", ".join(candidate["rewrites"]) or "none",
        candidate["note"],
    )


def _plan(strategy: str, counts: dict[str, Any], steps: list[dict[str, Any]]) -> RenderableType:
    return tables.table(
        f"Plan of bucket {counts['size']}: {strategy}, {counts['segments']} segments on "
        f"{counts['streams']} streams, {counts['waits']} waits",
        ("step>", "stream>", "segment", "waits for", "operators"),
        [
            (
                s["step"],
                s["stream"],
                s["name"],
                ", ".join(s["waits"]) or "-",
                ", ".join(s["operators"]),
            )
            for s in steps
        ],
    )


def _input_rows(
    inputs: list[dict[str, Any]], users: int, row_mask: str | None
) -> Iterator[tuple[str, int, str, str, str]]:
    """A row for each run of inputs that differ in nothing but their name."""
    for (shape, what, limits), run in groupby(
        inputs, lambda i: (i["shape"], _what(i, users), _limits(i))
    ):
        names = [item["name"] for item in run]
        name = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        yield name, len(names), shape, what, limits
    if row_mask is not None:
        yield row_mask, 1, "bool[n]", "row mask, by the runtime itself", "-"


def _what(item: dict[str, Any], users: int) -> str:
    words = []
    if item["user"]:
        words.append("of the user" if users == 1 else f"of at most {users} users")
    if item["kind"] == "values":
        words.append(f"divided by {item['along']}, room for {item['capacity']} a row")
    elif item["kind"] == "index":
        words.append("which user")
    elif item["kind"] != "rows":
        words.append(item["kind"])
    return ", ".join(words) or "-"


def _limits(item: dict[str, Any]) -> str:
    limits = [
        f"{bound['rows']:,}"
        + (f", from {bound['least']}" if bound["least"] else "")
        + ("" if bound["column"] is None else f" in column {bound['column']}")
        + (f" of dimension {bound['axis']}" if bound["axis"] > 1 else "")
        for bound in item["rows_of_table"]
    ]
    return ", ".join(limits) or "-"


def _row(item: dict[str, Any]) -> str:
    return f"{item['dtype']}[n{''.join(f', {d}' for d in item['row'])}]"


def _shortened(names: list[str], most: int = 4) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])}, … {names[-1]}"
