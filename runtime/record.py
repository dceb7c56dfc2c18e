"""Record a plan: the one place where fork, waits and join become calls on a device."""

from __future__ import annotations

from collections.abc import Sequence

from recreplay.runtime.devices.base import Launch, Recording, Staging
from recreplay.runtime.plan import Plan


def issue(
    plan: Plan, launches: Sequence[Launch], inputs: Staging, outputs: Staging, recording: Recording
) -> None:
    """Queue one replay of `plan`: upload, fork, segments with their waits, join, download.

    A side stream waits for the fork before its first segment, hence before its first allocation,
    and the main stream waits for every side stream that was used.
    """
    with recording.on(0):
        recording.launch(inputs.upload)
    fork = recording.record_event(0)
    forked = {0}
    waited_for = {w for step in plan.steps for w in step.waits}
    events: dict[int, object] = {}
    for position, (step, launch) in enumerate(zip(plan.steps, launches, strict=True)):
        if step.stream not in forked:
            recording.wait_event(step.stream, fork)
            forked.add(step.stream)
        for other in step.waits:
            recording.wait_event(step.stream, events[other])
        with recording.on(step.stream):
            recording.launch(launch)
        if position in waited_for:
            events[position] = recording.record_event(step.stream)
    for stream in sorted(forked - {0}):
        recording.wait_event(0, recording.record_event(stream))
    with recording.on(0):
        recording.launch(outputs.download)
