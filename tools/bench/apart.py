"""A measurement in a process of its own, so that none finds what another has left behind: threads,
memory in pieces, what the processor has learnt of other code."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from recreplay.runtime.errors import RecReplayError

T = TypeVar("T")
Say = Callable[[str], None]


def apart(function: Callable[..., T], *arguments: Any, progress: Say) -> T:
    """`function(*arguments, progress)`, run in a new process; all of it has to be picklable.

    Raises what the function does: errors of ours as they are, others as RecReplayError.
    """
    spawn = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_work, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        while True:
            kind, value = ours.recv()
            if kind == "progress":
                progress(value)
            elif kind == "result":
                found: T = value
                return found
            else:
                raise value
    except EOFError:
        process.join()
        raise RecReplayError(
            f"the process that measured ended without a result (exit code {process.exitcode})"
        ) from None
    finally:
        ours.close()
        if process.is_alive():
            process.join(timeout=5)  # it has nothing left to do, unless we were interrupted
            process.kill()
            process.join()


def _work(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.dup2(2, 1)  # stdout is for the result of the command alone, which is not ours to print
    try:
        answer = ("result", function(*arguments, lambda message: pipe.send(("progress", message))))
    except KeyboardInterrupt:  # who waits was interrupted as well, and says so
        raise SystemExit(130) from None
    except RecReplayError as error:
        answer = ("error", error)
    except Exception as error:
        answer = ("error", RecReplayError(f"{type(error).__name__}: {error}"))
    pipe.send(answer)
    pipe.close()
