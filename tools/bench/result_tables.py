"""Tables of result files in Markdown pages, so that no page says what no file says.

A page holds `<!-- results: FILE -->`, the table, and `<!-- end -->`; after the file's name may come
names of models, which leaves the others out. `python -m recreplay.tools.bench.result_tables PAGE`,
in a checkout, writes the tables of a page anew.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from recreplay.tools.bench.report import machine
from recreplay.tools.bench.result_renderers import RENDERERS

RESULTS = Path("tools/bench/results")  # of a checkout; no installation has them
_PLACE = re.compile(r"(<!-- results: (\S+\.json)((?: \w+)*) -->)\n.*?(<!-- end -->)", re.DOTALL)


def fill_page(text: str, results: Path) -> str:
    """The page with each of its tables made of its file in the folder `results`.

    Raises ValueError where a page asks for a model that its file does not have, KeyError where
    nothing here renders that kind of file, FileNotFoundError where there is no such file.
    """

    def place(match: re.Match[str]) -> str:
        start, name, models, end = match.groups()
        report = json.loads((results / name).read_text())
        lines = RENDERERS[report["kind"]](_only(report, models.split(), name))
        return "\n".join((start, *lines, "", _origin(report, name), end))

    return _PLACE.sub(place, text)


def _only(report: dict[str, Any], models: list[str], name: str) -> dict[str, Any]:
    if not models:
        return report
    found = {result["name"]: result for result in report["results"]}
    if missing := [model for model in models if model not in found]:
        raise ValueError(f"{name} has no result of {', '.join(missing)}; it has {', '.join(found)}")
    return {**report, "results": [found[model] for model in models]}


def _origin(report: dict[str, Any], name: str) -> str:
    """Where the file is, and where and when it was made."""
    stamp = report["stamp"] if "stamp" in report else report["published"][0]["stamp"]
    return f"<sub>`{name}`, {stamp['date'][:10]}: {machine(stamp)}.</sub>"


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        path.write_text(fill_page(path.read_text(), RESULTS))


if __name__ == "__main__":
    main()
