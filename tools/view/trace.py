"""A bucket as a trace in the layout that Kineto writes, for Perfetto and chrome://tracing.

One thread per lane, since Perfetto hides slices of one thread that overlap without nesting. A wait
is a flow from the end of one slice to the start of another.
"""

from __future__ import annotations

import time
from typing import Any

# Kineto uses process numbers and device indices; Linux gives no process a number this high, so the
# trace can be put beside one that the torch profiler wrote.
_FIRST_PROCESS = 5_000_000
_FIRST_THREAD = 1  # Perfetto takes thread 0 of a process to be the process itself
_NANOSECOND = 0.001  # in microseconds: what Perfetto counts in


def chrome_trace(
    artifact: dict[str, Any], view: dict[str, Any], timing: dict[str, Any]
) -> dict[str, Any]:
    """Events of one bucket: `view` from `bucket_view`, `timing` one of its timings."""
    process = _FIRST_PROCESS + view["size"]
    category = "gpu_user_annotation" if artifact["device"] == "cuda" else "user_annotation"
    steps = view["steps"]
    position = {step["name"]: step["step"] for step in steps}
    # Ends are rounded, not durations: slices that follow each other must not overlap by a digit.
    starts = [round(start, 3) for start in timing["starts_us"]]
    ends = [
        round(max(start + d, begin + 2 * _NANOSECOND), 3)
        for start, begin, d in zip(timing["starts_us"], starts, timing["durations_us"], strict=True)
    ]
    critical = set(timing["critical"])
    title = f"{artifact['model']} bucket {view['size']} ({timing['kind']})"
    events = [*_names(process, title, [step["stream"] for step in steps])]
    for step in steps:
        at = step["step"]
        events.append(
            {
                "ph": "X",
                "cat": category,
                "name": step["name"],
                "pid": process,
                "tid": _FIRST_THREAD + step["stream"],
                "ts": starts[at],
                "dur": round(ends[at] - starts[at], 3),
                "args": {
                    "stream": step["stream"],
                    "step": at,
                    "package": step["package"],
                    "operators": step["operators"],
                    "waits for": step["waits"],
                    "critical path": at in critical,
                    "time": timing["kind"],
                },
            }
        )
        for kernel in timing.get("kernels", [[]] * len(steps))[at]:
            events.append(_kernel(process, step["stream"], kernel))
    flow = 1  # 0 means none
    for step in steps:
        for name in step["waits"]:
            other = position[name]
            common = {"cat": "wait", "name": "wait", "id": flow, "pid": process}
            # A slice does not hold its own end, so a flow leaves a nanosecond earlier.
            left = ends[other] - _NANOSECOND
            events.append(
                {
                    **common,
                    "ph": "s",
                    "tid": _FIRST_THREAD + steps[other]["stream"],
                    "ts": round(left, 3),
                }
            )
            arrives = {"ph": "f", "bp": "e", "tid": _FIRST_THREAD + step["stream"]}
            events.append({**common, **arrives, "ts": starts[step["step"]]})
            flow += 1
    for name, at_us in (("fork", 0.0), ("join", timing["total_us"])):
        if view["streams"] > 1:
            # Of the process, not of a lane: there it would be taken for where a flow begins.
            mark = {"ph": "i", "s": "p", "cat": category, "name": name}
            events.append({**mark, "pid": process, "tid": _FIRST_THREAD, "ts": at_us})
    return {
        "schemaVersion": 1,
        "deviceProperties": [],
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": time.time_ns() // 1_000_000_000 * 1_000_000_000,
        "traceName": title,
        "recreplay": {"times": timing["note"], "bucket": view["size"]},
        "traceEvents": events,
    }


def _kernel(process: int, stream: int, kernel: dict[str, Any]) -> dict[str, Any]:
    """A kernel inside its segment's slice."""
    start = round(kernel["start_us"], 3)
    return {
        "ph": "X",
        "cat": "kernel",
        "name": kernel["name"],
        "pid": process,
        "tid": _FIRST_THREAD + stream,
        "ts": start,
        "dur": round(kernel["start_us"] + kernel["duration_us"] - start, 3),
        "args": {"stream": stream},
    }


def _names(process: int, title: str, streams: list[int]) -> list[dict[str, Any]]:
    """What Perfetto calls the process and its lanes, and the order of those."""

    def note(kind: str, thread: int, **arguments: Any) -> dict[str, Any]:
        common = {"ph": "M", "pid": process, "tid": thread, "ts": 0.0}
        return {**common, "name": kind, "args": arguments}

    events = [note("process_name", 0, name=f"recreplay {title}")]
    for stream in sorted(set(streams)):
        thread = _FIRST_THREAD + stream
        events.append(note("thread_name", thread, name=f"stream {stream}"))
        events.append(note("thread_sort_index", thread, sort_index=stream))
    return events
