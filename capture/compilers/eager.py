"""The compiler that compiles nothing: a segment is stored as its list of ATen operators.

It needs no C++ compiler and takes no time; replay then pays torch's dispatch for each operator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from recreplay.capture.sharing import Code
from recreplay.runtime.manifest import Package


class EagerCompiler:
    name = "eager"
    dynamic_batch = False

    def compile(
        self,
        codes: Mapping[str, Code],
        folder: Path,
        device: str,
        progress: Callable[[str], None],
    ) -> dict[str, Package]:
        (folder / "segments").mkdir(parents=True, exist_ok=True)
        packages = {}
        for key, code in codes.items():
            path = f"segments/{key}.json"
            (folder / path).write_text(json.dumps(code.to_json()))
            packages[key] = Package("eager", path)
        return packages
