"""A plugin of pytest that writes down each test as it begins and as it ends, line by line in JSON.

A process that a kernel takes along, or that is killed, has then said all that it ran.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from recreplay.tools.limited_run import end_with_parent

FILE = "RECREPLAY_GPU_REPORT"  # the variable that names it
ENDED = "the process ended meanwhile"  # of a test that began and did not end
_WORDS = 2000  # characters that are kept of a failure


def pytest_configure() -> None:
    end_with_parent()


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(nodeid, "begun", "")


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or not report.passed:
        told = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longreprtext
        _write(report.nodeid, report.outcome, "" if report.passed else str(told)[-_WORDS:])


def _write(test: str, outcome: str, message: str) -> None:
    with Path(os.environ[FILE]).open("a") as file:
        file.write(json.dumps({"id": test, "outcome": outcome, "message": message}) + "\n")


def read_report(file: Path) -> dict[str, dict[str, str]]:
    """The tests that began, by their names; those that did not end are failed."""
    found: dict[str, dict[str, str]] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        case = json.loads(line)
        before = found.get(case["id"], {}).get("outcome")
        if before != "failed":  # what fails when it is torn down has passed before
            found[case["id"]] = case
    for case in found.values():
        if case["outcome"] == "begun":
            case |= {"outcome": "failed", "message": ENDED}
    return found
