"""For which processors a model is captured."""

from __future__ import annotations

from recreplay.runtime.errors import CaptureError
from recreplay.runtime.processor import PROCESSORS, instruction_sets


def check_processor(processor: str) -> list[str]:
    """The instructions that packages may use. Raises CaptureError for an unknown processor, and for
    one of which this one is none, since every bucket is proved here."""
    if processor not in PROCESSORS:
        raise CaptureError(
            f"unknown processor {processor!r}; expected one of {', '.join(PROCESSORS)}"
        )
    found = instruction_sets(processor)
    if missing := set(found) - set(instruction_sets()):
        raise CaptureError(
            f"processor {processor!r} cannot be captured for here: this one lacks "
            f"{', '.join(sorted(missing))}, and capture proves what it compiles by running it"
        )
    return found
